//! One day of a small lab, on real firmware and real libvirt: BIOS and UEFI boots, wake by magic packet, desktops on the
//! screens, desktop to compute and back, a batch guest saved on one machine and resumed with its memory on the other, power off
//! with Wake-on-LAN armed, and everything again the next morning. The scenario is `labshift lab demo`, which fails
//! unless each of these was seen; what it leaves is checked again here.

use std::fs;

use labshift_lab::screen::Picture;
use labshift_tests::{demo, root};
use serde_json::Value;

/// The desktop guest's wallpaper.
const WALLPAPER: [u8; 3] = [0x0f, 0x4c, 0x5c];

#[test]
fn one_day() {
    let output = root().join("target/test-lab/day");
    let status = demo(&output).status().expect("starting labshift lab demo");
    assert!(status.success(), "the day did not go as planned ({status}); see {}", output.display());

    let text = fs::read_to_string(output.join("demo.json")).expect("reading the record");
    let record: Value = serde_json::from_str(&text).expect("a JSON record");
    let steps: Vec<_> =
        record["steps"].as_array().expect("steps").iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(steps, ["wake", "compute", "save", "resume", "off", "wake-again"]);

    // Each machine booted twice, by magic packets only, and was off and armed in between.
    let events = fs::read_to_string(output.join("events.jsonl")).expect("reading the lab's journal");
    let events: Vec<Value> = events.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    for machine in ["ws1", "ws2"] {
        let of = |kind: &str| -> Vec<&str> {
            let mine = events.iter().filter(|e| e["machine"] == machine && e["event"] == kind);
            mine.filter_map(|e| e["detail"].as_str()).collect()
        };
        assert_eq!(of("powered-on"), ["magic packet"; 2], "{machine}");
        assert_eq!(of("powered-off"), ["armed for a magic packet"], "{machine}");
        for stage in ["init", "root-mounted", "guest-visible"] {
            let reached = of("serial").iter().filter(|line| line.contains(stage)).count();
            assert!(reached >= 2, "{machine} did not reach {stage} in both boots");
        }
    }

    // The screens show desktops, not the boot's text.
    for name in ["ws1-desktop", "ws2-desktop", "ws1-desktop-again"] {
        let picture = Picture::read(&output.join(format!("{name}.png"))).expect("reading the screenshot");
        assert!(picture.share_of(WALLPAPER, 12) > 0.3, "{name} does not show the guest's wallpaper");
        assert!(picture.share_of([0, 0, 0], 8) < 0.5, "{name} is mostly black");
    }
}
