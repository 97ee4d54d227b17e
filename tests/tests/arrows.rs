//! Which crate may use which: the arrows of docs/design.md point down only.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Crate → the workspace crates it may name as dependencies.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let role = vec!["labshift-model"];
    let planned = vec!["labshift-model", "labshift-plan"];
    BTreeMap::from([
        ("labshift-model", vec![]),
        ("labshift-plan", role.clone()),
        ("labshift-image", role.clone()),
        ("labshift-initrd", role.clone()),
        ("labshift-pxe", role.clone()),
        ("labshift-rcuda", role),
        ("labshift-runtime", planned.clone()),
        ("labshift-fleet", planned),
        ("labshift-lab", vec!["labshift-model", "labshift-image"]),
        (
            "labshift-cli",
            vec![
                "labshift-model",
                "labshift-plan",
                "labshift-image",
                "labshift-pxe",
                "labshift-fleet",
                "labshift-lab",
            ],
        ),
        (
            "labshift-fuzz",
            vec![
                "labshift-model",
                "labshift-image",
                "labshift-initrd",
                "labshift-pxe",
                "labshift-rcuda",
                "labshift-runtime",
                "labshift-lab",
            ],
        ),
        ("labshift-tests", vec!["labshift-model", "labshift-lab", "labshift-fleet", "labshift-image"]),
    ])
}

#[test]
fn arrows_point_down_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .expect("running cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("reading cargo metadata");
    let allowed = allowed();
    let mut wrong = vec![];
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} is a new crate: give it its arrows here and in docs/design.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let to = dependency["name"].as_str().expect("name");
            if to.starts_with("labshift-") && !may.contains(&to) {
                wrong.push(format!("{name} must not use {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
