# labshift: `make help` lists the targets.
CARGO ?= cargo
TARGET := x86_64-unknown-linux-gnu
PROGRAMS := target/release/programs
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help deps build demo test test-unit test-lab check bench bench-boot-server clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

deps: ## install the Debian packages that building and testing need
	@scripts/deps

build: deps ## build everything; the command is target/release/labshift
	$(CARGO) build --release --locked -p labshift-cli -p labshift-runtime -p labshift-rcuda
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked --target $(TARGET) -p labshift-initrd -p labshift-rcuda
	@mkdir -p $(PROGRAMS)
	@install -m 755 target/$(TARGET)/release/init target/$(TARGET)/release/rcuda-smi \
	  target/release/labshift-runtime target/release/rcuda-server $(PROGRAMS)/

demo: build ## play one day of a small lab in QEMU; leaves screenshots, traces and logs in target/demo
	$(SUDO) target/release/labshift lab demo --recipes recipes --store target/lab/store --output target/demo

test: test-unit test-lab ## run every test

test-unit: build ## tests that need no machine
	$(CARGO) test --release --locked --workspace --exclude labshift-tests
	$(CARGO) test --release --locked -p labshift-tests --test arrows

test-lab: build ## tests that boot workstations in QEMU, one after the other
	$(CARGO) test --release --locked -p labshift-tests --test day --test boot -- --test-threads=1 --nocapture

check: deps ## formatting, lints, docs, licences, and which crate may use which
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --workspace --no-deps --document-private-items --quiet
	$(CARGO) test --release --locked -q -p labshift-tests --test arrows
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level error check licenses bans sources; \
	  else echo 'check: cargo-deny is not installed; licences and sources were not audited'; fi

bench: build ## boot and mode-change figures, measured in the lab
	$(SUDO) target/release/labshift lab bench --recipes recipes --store target/lab/store --output target/bench

bench-boot-server: build ## DHCP, TFTP and HTTP beside dnsmasq, Kea, tftpd-hpa and nginx
	@scripts/deps bench
	$(CARGO) build --release --locked -p labshift-pxe --example load
	$(SUDO) scripts/bench-boot-server

clean: ## remove what was built
	$(CARGO) clean
