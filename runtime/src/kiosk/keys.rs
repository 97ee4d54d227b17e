//! From the kernel's key codes (`linux/input-event-codes.h`) to the scan codes that QEMU's extended key event takes:
//! XT set 1, with an `E0` prefix written as bit 7.
//!
//! Scan codes and not key symbols: what a key means is decided by the keyboard layout inside the guest, once.

/// The scan code of a kernel key code; `None` for keys that a PC keyboard does not send.
pub fn scan_code(key: u16) -> Option<u16> {
    Some(match key {
        // The block that both tables share: Esc to keypad dot.
        1..=83 => key,
        85 => 0x76,                    // zenkaku/hankaku
        86..=88 => key,                // <>|, F11, F12
        89 => 0x73,                    // ro
        90 => 0x78,                    // katakana
        91 => 0x77,                    // hiragana
        92 => 0x79,                    // henkan
        93 => 0x70,                    // katakana/hiragana
        94 => 0x7b,                    // muhenkan
        95 => 0x5c,                    // keypad comma (Japan)
        96 => 0x9c,                    // keypad enter
        97 => 0x9d,                    // right ctrl
        98 => 0xb5,                    // keypad /
        99 => 0x54,                    // print screen
        100 => 0xb8,                   // right alt
        102 => 0xc7,                   // home
        103 => 0xc8,                   // up
        104 => 0xc9,                   // page up
        105 => 0xcb,                   // left
        106 => 0xcd,                   // right
        107 => 0xcf,                   // end
        108 => 0xd0,                   // down
        109 => 0xd1,                   // page down
        110 => 0xd2,                   // insert
        111 => 0xd3,                   // delete
        113 => 0xa0,                   // mute
        114 => 0xae,                   // volume down
        115 => 0xb0,                   // volume up
        116 => 0xde,                   // power
        117 => 0x59,                   // keypad =
        119 => 0xc6,                   // pause
        121 => 0x7e,                   // keypad comma
        122 => 0x72,                   // hangul
        123 => 0x71,                   // hanja
        124 => 0x7d,                   // yen
        125 => 0xdb,                   // left logo
        126 => 0xdc,                   // right logo
        127 => 0xdd,                   // menu
        140 => 0xa1,                   // calculator
        142 => 0xdf,                   // sleep
        143 => 0xe3,                   // wake
        150 => 0x82,                   // www
        155 => 0xec,                   // mail
        158 => 0xea,                   // back
        159 => 0xe9,                   // forward
        163 => 0x99,                   // next track
        164 => 0xa2,                   // play
        165 => 0x90,                   // previous track
        166 => 0xa4,                   // stop
        172 => 0xb2,                   // home page
        173 => 0xe7,                   // refresh
        183..=185 => key - 183 + 0x5d, // F13 to F15
        217 => 0xe5,                   // search
        _ => return None,
    })
}

/// The key symbol that goes along. QEMU looks at it for one thing only: whether a keypad key is meant as digit or as
/// arrow, so that it can bring the guest's Num Lock in line. It must therefore say what the guest's own Num Lock says.
pub fn key_symbol(key: u16, num_lock: bool) -> u32 {
    const DIGITS: [(u16, u32, u32); 11] = [
        (71, 0xffb7, 0xff95),
        (72, 0xffb8, 0xff97),
        (73, 0xffb9, 0xff9a),
        (75, 0xffb4, 0xff96),
        (76, 0xffb5, 0xff9d),
        (77, 0xffb6, 0xff98),
        (79, 0xffb1, 0xff9c),
        (80, 0xffb2, 0xff99),
        (81, 0xffb3, 0xff9b),
        (82, 0xffb0, 0xff9e),
        (83, 0xffae, 0xff9f),
    ];
    match DIGITS.iter().find(|(k, ..)| *k == key) {
        Some((_, digit, _)) if num_lock => *digit,
        Some((_, _, arrow)) => *arrow,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evdev::KeyCode;

    #[test]
    fn known_keys() {
        for (key, code) in [
            (KeyCode::KEY_ESC, 0x01),
            (KeyCode::KEY_A, 0x1e),
            (KeyCode::KEY_SPACE, 0x39),
            (KeyCode::KEY_F12, 0x58),
            (KeyCode::KEY_102ND, 0x56),
            (KeyCode::KEY_KPDOT, 0x53),
            (KeyCode::KEY_KPENTER, 0x9c),
            (KeyCode::KEY_RIGHTALT, 0xb8),
            (KeyCode::KEY_UP, 0xc8),
            (KeyCode::KEY_DELETE, 0xd3),
            (KeyCode::KEY_LEFTMETA, 0xdb),
            (KeyCode::KEY_PAUSE, 0xc6),
            (KeyCode::KEY_F15, 0x5f),
        ] {
            assert_eq!(scan_code(key.code()), Some(code), "{key:?}");
        }
    }

    #[test]
    fn no_two_keys_share_a_code_and_all_fit() {
        let mut seen = std::collections::BTreeMap::new();
        for key in 0..=0x2ff {
            if let Some(code) = scan_code(key) {
                assert!((1..=0xff).contains(&code), "key {key} -> {code:#x}");
                assert_eq!(seen.insert(code, key), None, "code {code:#x}");
            }
        }
        assert!(seen.len() > 130);
        for key in [0, 84, 101, KeyCode::BTN_LEFT.code(), u16::MAX] {
            assert_eq!(scan_code(key), None);
        }
    }

    #[test]
    fn keypad_symbols_follow_num_lock() {
        assert_eq!(key_symbol(KeyCode::KEY_KP7.code(), true), 0xffb7);
        assert_eq!(key_symbol(KeyCode::KEY_KP7.code(), false), 0xff95);
        assert_eq!(key_symbol(KeyCode::KEY_A.code(), true), 0);
    }
}
