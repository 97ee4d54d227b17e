use super::*;

fn header(rect: (u16, u16, u16, u16), encoding: i32) -> Vec<u8> {
    let mut out = Vec::new();
    for v in [rect.0, rect.1, rect.2, rect.3] {
        out.extend_from_slice(&v.to_be_bytes());
    }
    out.extend_from_slice(&encoding.to_be_bytes());
    out
}

fn update(rectangles: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![0, 0];
    out.extend_from_slice(&(rectangles.len() as u16).to_be_bytes());
    out.extend(rectangles.concat());
    out
}

fn greeting(width: u16, height: u16) -> Vec<u8> {
    let mut out = b"RFB 003.008\n\x02\x02\x01\x00\x00\x00\x00".to_vec();
    out.extend_from_slice(&width.to_be_bytes());
    out.extend_from_slice(&height.to_be_bytes());
    out.extend_from_slice(&[32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    out.extend_from_slice(b"\x00\x00\x00\x0eQEMU (desktop)");
    out
}

/// Everything a server of QEMU's kind may say, on a picture of 4 by 3.
fn conversation() -> Vec<u8> {
    let mut screens = header((0, 0, 4, 3), EXTENDED_DESKTOP_SIZE);
    screens.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 0]);
    let mut raw = header((1, 1, 2, 2), RAW);
    raw.extend((0..16).map(|i| i * 10));
    let mut copy = header((0, 0, 2, 2), COPY_RECT);
    copy.extend_from_slice(&[0, 1, 0, 1]);
    let mut cursor = header((1, 0, 2, 1), RICH_CURSOR);
    cursor.extend_from_slice(&[1, 2, 3, 0, 4, 5, 6, 0, 0b0100_0000]);
    let mut light = header((0, 0, 0, 0), LOCK_LIGHTS);
    light.push(0b010);
    let mut out = greeting(4, 3);
    out.extend(update(&[
        header((0, 0, 4, 3), EXTENDED_KEYS),
        header((1, 0, 4, 3), POINTER_MODE),
        light,
        screens,
    ]));
    out.extend(update(&[raw, copy, cursor]));
    out.extend_from_slice(&[2]);
    out.extend_from_slice(b"\x03\x00\x00\x00\x00\x00\x00\x05clips");
    out.extend_from_slice(b"\x01\x00\x00\x00\x00\x01rrggbb");
    out.extend(update(&[header((0, 0, 2, 2), DESKTOP_SIZE)]));
    out
}

fn expected() -> Vec<Event> {
    vec![
        Event::Connected { name: "QEMU (desktop)".into() },
        Event::PointerMode { absolute: true },
        Event::Lights(2),
        Event::SizeOnRequest,
        Event::UpdateDone { pixels: false },
        Event::Damaged(Rect::new(1, 1, 2, 2)),
        Event::Damaged(Rect::new(0, 0, 2, 2)),
        Event::Cursor(Cursor::new(Rect::new(1, 0, 2, 1), &[1, 2, 3, 0, 4, 5, 6, 0], &[0b0100_0000])),
        Event::UpdateDone { pixels: true },
        Event::Resized,
        Event::UpdateDone { pixels: false },
    ]
}

#[test]
fn one_conversation_however_it_is_cut() {
    let bytes = conversation();
    for piece in [1, 2, 3, 7, 64, bytes.len()] {
        let (mut client, mut events) = (Client::new(), Vec::new());
        for part in bytes.chunks(piece) {
            client.feed(part, &mut events).unwrap();
        }
        assert_eq!(events, expected(), "pieces of {piece}");
        assert!(client.input.is_empty());
        assert_eq!((client.picture().width(), client.picture().height()), (2, 2));
    }
}

#[test]
fn pixels_arrive_where_they_belong() {
    let (mut client, mut events) = (Client::new(), Vec::new());
    let mut bytes = greeting(4, 3);
    let mut raw = header((1, 1, 2, 2), RAW);
    raw.extend((0..16).map(|i| i * 10));
    bytes.extend(update(&[raw]));
    client.feed(&bytes, &mut events).unwrap();
    assert_eq!(client.picture().pixel(1, 1), 0x14_0a_00);
    assert_eq!(client.picture().pixel(2, 2), u32::from_le_bytes([120, 130, 140, 0]));
    assert_eq!(client.picture().pixel(0, 0), 0);
}

#[test]
fn what_the_client_says() {
    let (mut client, mut events) = (Client::new(), Vec::new());
    client.feed(&greeting(4, 3), &mut events).unwrap();
    let said = std::mem::take(client.output());
    assert!(said.starts_with(b"RFB 003.008\n\x01\x01\x00\x00\x00\x00\x20\x18\x00\x01"));
    client.key(0x1e, 0, true);
    assert!(client.output().is_empty(), "no extended keys before the server offers them");
    client.feed(&update(&[header((0, 0, 0, 0), EXTENDED_KEYS)]), &mut events).unwrap();
    client.key(0xc8, 0xff52, false);
    client.pointer(0x102, 3, 1);
    client.ask_for_size(1280, 800);
    client.ask_for_update(true);
    let mut wanted = vec![255, 0, 0, 0, 0, 0, 0xff, 0x52, 0, 0, 0, 0xc8, 5, 1, 1, 2, 0, 3];
    wanted.extend_from_slice(&[251, 0, 5, 0, 3, 32, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 3, 32, 0, 0, 0, 0]);
    wanted.extend_from_slice(&[3, 1, 0, 0, 0, 0, 0, 4, 0, 3]);
    assert_eq!(*client.output(), wanted);
}

#[test]
fn refusals_and_nonsense_end_the_connection() {
    let feed = |bytes: &[u8]| Client::new().feed(bytes, &mut Vec::new());
    assert_eq!(feed(b"HTTP/1.1 200 OK"), Err(Fault::Version));
    assert_eq!(feed(b"RFB 003.008\n\x01\x02"), Err(Fault::Security));
    let refused = Err(Fault::Refused("too many".into()));
    assert_eq!(feed(b"RFB 003.008\n\x00\x00\x00\x00\x09too\x07 many"), refused);
    assert_eq!(feed(b"RFB 003.008\n\x01\x01\x00\x00\x00\x01\x00\x00\x00\x08too many"), refused);

    let after = |bytes: &[u8]| feed(&[greeting(4, 3), bytes.to_vec()].concat());
    assert_eq!(after(&[9]), Err(Fault::Unknown { what: "message", number: 9 }));
    for (rect, encoding) in [((3, 0, 2, 1), RAW), ((0, 0, 1, 65535), RAW), ((0, 3, 1, 1), COPY_RECT)] {
        let result = after(&update(&[header(rect, encoding)]));
        assert!(matches!(result, Err(Fault::Bounds { what: "a rectangle", .. })), "{rect:?} {result:?}");
    }
    for (rect, encoding, what) in
        [((0, 0, 65535, 65535), DESKTOP_SIZE, "a picture"), ((0, 0, 300, 1), RICH_CURSOR, "a cursor")]
    {
        let result = after(&update(&[header(rect, encoding)]));
        assert!(matches!(result, Err(Fault::Bounds { what: w, .. }) if w == what), "{what}: {result:?}");
    }
    let odd = after(&update(&[header((0, 0, 1, 1), 5)]));
    assert_eq!(odd, Err(Fault::Unknown { what: "encoding", number: 5 }));
    let clipboard = after(b"\x03\x00\x00\x00\xff\xff\xff\xff");
    assert!(matches!(clipboard, Err(Fault::Bounds { what: "a clipboard", .. })));
    let name = feed(&[&greeting(4, 3)[..39], &[0xff; 4]].concat());
    assert!(matches!(name, Err(Fault::Bounds { what: "a name", .. })), "{name:?}");
}

#[test]
fn empty_rectangles_do_no_harm() {
    let (mut client, mut events) = (Client::new(), Vec::new());
    let mut bytes = greeting(0, 0);
    bytes.extend(update(&[header((0, 0, 0, 0), RAW), header((0, 0, 0, 0), RICH_CURSOR)]));
    bytes.extend(update(&[]));
    client.feed(&bytes, &mut events).unwrap();
    assert_eq!(events.last(), Some(&Event::UpdateDone { pixels: false }));
}

/// A fixed number of damaged conversations: no panic, no picture above the limit, no unbounded store of input.
#[test]
fn damaged_conversations() {
    let seed = conversation();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..20_000 {
        let mut bytes = seed.clone();
        for _ in 0..=next(4) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] = next(256) as u8,
                1 => bytes[at] ^= 1 << next(8),
                2 => drop(bytes.drain(at..(at + next(9)).min(bytes.len()))),
                _ => bytes.insert(at, [0, 0xff, 0x7f, 0x80][next(4)]),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let (mut client, mut events) = (Client::new(), Vec::new());
        for part in bytes.chunks(1 + next(40)) {
            if client.feed(part, &mut events).is_err() {
                break;
            }
        }
        let (w, h) = (client.picture().width(), client.picture().height());
        assert!(u64::from(w) * u64::from(h) <= MOST_PIXELS);
        for event in &events {
            if let Event::Damaged(rect) = event {
                assert!(rect.width <= 65535 && rect.height <= 65535);
            }
        }
    }
}
