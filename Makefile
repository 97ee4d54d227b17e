# labshift: `make help` lists the targets.
CARGO ?= cargo
TARGET := x86_64-unknown-linux-gnu
PROGRAMS := target/release/programs
TOOLS := target/tools
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help deps build demo test test-unit test-lab check fuzz recipes deb bench bench-boot bench-boot-server bench-image clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

deps: ## install the Debian packages that building and testing need
	@scripts/deps

build: deps ## build everything; the command is target/release/labshift
	$(CARGO) build --release --locked -p labshift-cli
	$(CARGO) build --profile node --locked -p labshift-runtime -p labshift-rcuda --bin labshift-runtime --bin rcuda-server
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --profile node --locked --target $(TARGET) \
	  -p labshift-initrd -p labshift-rcuda --bin init --bin rcuda-smi
	@mkdir -p $(PROGRAMS)
	@install -s -m 755 target/$(TARGET)/node/init target/$(TARGET)/node/rcuda-smi \
	  target/node/labshift-runtime target/node/rcuda-server $(PROGRAMS)/

demo: build ## play one day of a small lab in QEMU; leaves screenshots, traces and logs in target/demo
	$(SUDO) target/release/labshift lab demo --recipes recipes --store target/lab/store --output target/demo

test: test-unit test-lab ## run every test

test-unit: build ## tests that need no machine
	$(CARGO) test --release --locked --workspace --exclude labshift-tests
	$(CARGO) test --release --locked -p labshift-tests --test arrows --test cases

test-lab: build ## tests that boot workstations in QEMU, one after the other
	$(CARGO) test --release --locked -p labshift-tests --test day --test boot -- --test-threads=1 --nocapture
	$(CARGO) test --release --locked -p labshift-tests --test failures -- --test-threads=3

check: deps ## formatting, lints, docs, licences, and which crate may use which
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --locked --workspace --no-deps --document-private-items --quiet
	$(CARGO) test --release --locked -q -p labshift-tests --test arrows
	@[ -x $(TOOLS)/bin/cargo-deny ] || $(CARGO) install --quiet --locked --debug --root $(TOOLS) cargo-deny@0.20.2
	$(TOOLS)/bin/cargo-deny --log-level error check licenses bans sources

SECONDS ?= 30
TARGET_NAMES = $(if $(FUZZ),$(FUZZ),$(notdir $(wildcard fuzz/corpus/*)))

fuzz: ## search for inputs that break a parser: make fuzz [FUZZ=dhcp_server] [SECONDS=30]
	@scripts/deps fuzz
	@[ -x $(TOOLS)/bin/cargo-fuzz ] || $(CARGO) install --quiet --locked --root $(TOOLS) cargo-fuzz@0.13.2
	@for t in $(TARGET_NAMES); do mkdir -p target/fuzz/$$t; echo "fuzz: $$t"; RUSTC_BOOTSTRAP=1 PATH=$(TOOLS)/bin:$$PATH \
	  $(CARGO) fuzz run $$t target/fuzz/$$t fuzz/corpus/$$t -- -max_total_time=$(SECONDS) -rss_limit_mb=2048 -print_final_stats=1 || exit 1; done

bench-boot: build ## time to ready, memory, processes and bytes of a boot, against Debian live-boot (run scripts/deps bench first)
	$(SUDO) scripts/peer-live target/bench/peer || echo 'bench-boot: measured without its peer'
	$(CARGO) build --release --locked -p labshift-pxe --example serve
	$(CARGO) build --release --locked -p labshift-initrd --example root
	$(CARGO) build --release --locked -p labshift-tests --bin bench-boot
	$(SUDO) target/release/bench-boot

bench: build ## boot and mode-change figures, measured in the lab
	$(SUDO) target/release/labshift lab bench --recipes recipes --store target/lab/store --output target/bench

bench-boot-server: build ## DHCP, TFTP, HTTP and firmware's time beside dnsmasq, Kea, tftpd-hpa and nginx
	@scripts/deps bench
	$(CARGO) build --release --locked -p labshift-pxe --example load
	$(SUDO) scripts/bench-boot-server

recipes: build ## build the image of every recipe, into target/recipes
	target/release/labshift image build $(filter-out recipes/base.toml,$(wildcard recipes/*.toml)) --store target/recipes

bench-image: build ## how fast images are built, beside mmdebstrap and mkfs.erofs (scripts/deps bench)
	scripts/bench-image

deb: build ## the Debian package, with a systemd unit that needs no root: target/deb
	packaging/deb target/deb

clean: ## remove what was built
	$(CARGO) clean
