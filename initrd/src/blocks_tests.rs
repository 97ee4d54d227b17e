use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering},
};

use labshift_model::boot_order::BootOrder;

use super::*;
use crate::{
    fixture::{image, serve, source},
    verity::Mismatch,
};

#[test]
fn another_server_takes_over_where_the_first_died() {
    let (body, shape) = image(700);
    let (dies, asked) = serve(body.clone(), 1000, 0);
    let (lives, _) = serve(body.clone(), 0, 0);
    let blocks = Blocks::open(source(vec![dies, lives]), shape, Policy::Lazy, None).unwrap();
    let mut bytes = vec![0; 9000];
    blocks.read(123_456, &mut bytes).unwrap();
    assert!(bytes == body[123_456..][..9000]);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "a server that brings nothing is left");
}

#[test]
fn a_root_comes_as_it_is_read_and_then_needs_no_server() {
    let (body, shape) = image(700);
    let (url, served) = serve(body.clone(), 0, 0);
    let blocks = Arc::new(Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap());
    assert_eq!(blocks.size(), body.len() as u64);
    // Several readers of the same place: one request.
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (blocks, body) = (blocks.clone(), body.clone());
            std::thread::spawn(move || {
                let mut bytes = vec![0; 5000];
                blocks.read(1_000_000, &mut bytes).unwrap();
                assert!(bytes == body[1_000_000..][..5000]);
            })
        })
        .collect();
    readers.into_iter().for_each(|r| r.join().unwrap());
    assert_eq!(served.load(Ordering::SeqCst), 2, "the tree and one row of chunks");
    assert!(blocks.fetched() < 1_000_000);
    assert!(blocks.fetch_rest(Duration::ZERO));
    let before = served.load(Ordering::SeqCst);
    let mut all = vec![0; body.len()];
    blocks.read(0, &mut all).unwrap();
    assert!(all == body);
    assert_eq!(served.load(Ordering::SeqCst), before, "everything was there");
    assert!(blocks.read(body.len() as u64 - 10, &mut [0; 20]).is_err(), "past the end");
}

#[test]
fn a_lazy_root_keeps_little_and_fetches_again() {
    let (body, shape) = image(3200);
    let (url, served) = serve(body.clone(), 0, 0);
    let blocks = Blocks::open(source(vec![url]), shape, Policy::Lazy, None).unwrap();
    let mut all = vec![0; body.len()];
    blocks.read(0, &mut all).unwrap();
    assert!(all == body);
    let before = served.load(Ordering::SeqCst);
    assert!(before < 30, "reads in a row are fetched together: {before}");
    blocks.read(body.len() as u64 - 9_000_000, &mut all[..100]).unwrap();
    blocks.read(0, &mut all[..100]).unwrap();
    assert!(served.load(Ordering::SeqCst) > before);
}

/// The second boot fetches what the first one has read, in its order, before anybody asks, and nothing else.
#[test]
fn a_recorded_order_is_fetched_ahead() {
    let (body, shape) = image(3200);
    let chunk = 32 * BLOCK as u64;
    let reads = [70, 3, 4, 5, 90, 0, 70];
    let (url, _) = serve(body.clone(), 0, 0);
    let first = Blocks::open(source(vec![url]), shape.clone(), Policy::Full, None).unwrap();
    for at in reads {
        first.read(at * chunk + 100, &mut [0; 1000]).unwrap();
    }
    let order = first.order();
    assert_eq!(order.to_string(), "2240+32,96+96,2880+32,0+32");

    let (url, served) = serve(body.clone(), 0, 0);
    let then = Blocks::open(source(vec![url]), shape.clone(), Policy::Full, None).unwrap();
    let tree = then.fetched();
    then.follow(&order);
    assert!(then.is_ordered() && !first.is_ordered());
    then.prefetch();
    assert_eq!((then.fetched() - tree, served.load(Ordering::SeqCst)), (6 * chunk, 1 + 4));
    for at in reads {
        let mut bytes = [0; 1000];
        then.read(at * chunk + 100, &mut bytes).unwrap();
        assert!(bytes == body[(at * chunk) as usize + 100..][..1000]);
    }
    assert_eq!(served.load(Ordering::SeqCst), 5, "everything was there");
    // What the recorded boot did not read comes alone.
    then.read(50 * chunk, &mut [0; 10]).unwrap();
    assert_eq!(then.fetched() - tree, 7 * chunk);

    // An order that names blocks beyond the end, or wrong ones, costs nothing but time.
    let (url, _) = serve(body, 1, 0);
    let odd = Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap();
    odd.follow(&BootOrder::parse("3199+4000000000,4000000000+4000000000").unwrap());
    odd.prefetch();
    assert!(odd.read(0, &mut [0; 10]).is_ok());
    odd.abandon();
    assert!(!odd.is_ordered());
}

/// What the recorded boot read when it was up comes when this one is up.
#[test]
fn what_was_read_later_is_fetched_later() {
    let (body, shape) = image(3200);
    let chunk = 32 * BLOCK as u64;
    let (url, _) = serve(body.clone(), 0, 0);
    let first = Blocks::open(source(vec![url]), shape.clone(), Policy::Full, None).unwrap();
    let read = |blocks: &Blocks, chunks: &[u64]| {
        for at in chunks {
            blocks.read(at * chunk, &mut [0; 10]).unwrap();
        }
    };
    read(&first, &[3, 4, 90]);
    first.note_up();
    read(&first, &[5, 6]);
    first.note_up();
    assert_eq!(first.order().to_string(), "96+64,2880+32;160+64");

    let (url, _) = serve(body, 0, 0);
    let then = Arc::new(Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap());
    let tree = then.fetched();
    then.follow(&first.order());
    let fetching = then.clone();
    let ahead = std::thread::spawn(move || fetching.prefetch());
    // The three that come early; a fourth, which nobody planned, comes because it is wanted, and the planned ones wait meanwhile.
    read(&then, &[3, 4, 90, 50]);
    assert_eq!(then.fetched() - tree, 4 * chunk);
    then.note_up();
    ahead.join().unwrap();
    assert_eq!(then.fetched() - tree, 6 * chunk);
}

/// What one boot has kept on the disk, the next one takes from there, but for a block that was changed; another root's blocks are none.
#[test]
fn a_disk_is_read_by_the_next_boot_and_not_believed() {
    let path = std::env::temp_dir().join(format!("labshift-cache-{}", std::process::id()));
    let disk = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    disk.set_len(20 << 20).unwrap();
    let (body, shape) = image(3200);
    let boot = |body: &[u8], shape: &Shape| {
        let (url, _) = serve(body.to_vec(), 0, 0);
        let cache = Cache::open(disk.try_clone().unwrap(), shape).unwrap();
        let warm = cache.is_warm();
        let blocks = Blocks::open(source(vec![url]), shape.clone(), Policy::Disk, Some(cache)).unwrap();
        let mut all = vec![0; body.len()];
        blocks.read(0, &mut all).unwrap();
        assert!(all == body);
        // Few are kept in memory: this one comes from the disk again.
        let fetched = blocks.fetched();
        blocks.read(0, &mut all[..10]).unwrap();
        assert_eq!(blocks.fetched(), fetched);
        assert!(blocks.fetch_rest(Duration::ZERO) && blocks.fetched() == fetched);
        (warm, fetched)
    };
    assert_eq!(boot(&body, &shape), (false, body.len() as u64));
    assert_eq!(boot(&body, &shape), (true, 0));
    let chunk = 32 * BLOCK as u64;
    for at in [2_000_000, 9_000_000] {
        disk.write_all_at(b"somebody was here", at).unwrap();
    }
    assert_eq!(boot(&body, &shape), (true, 2 * chunk));
    assert_eq!(boot(&body, &shape), (true, 0), "it was put right");
    disk.write_all_at(&[7; 100], 140_000).unwrap();
    let tree = body.len() as u64 - shape.data_size();
    assert_eq!(boot(&body, &shape), (true, tree));
    let (other, other_shape) = image(900);
    assert_eq!(boot(&other, &other_shape), (false, other.len() as u64));
    std::fs::remove_file(path).unwrap();
}

/// A root of which little is kept is fetched ahead only so far that nothing is thrown away before it is read.
#[test]
fn a_lazy_root_is_not_fetched_too_far_ahead() {
    let (body, shape) = image(3200);
    let (url, served) = serve(body, 0, 0);
    let blocks = Arc::new(Blocks::open(source(vec![url]), shape, Policy::Lazy, None).unwrap());
    blocks.follow(&BootOrder::parse("0+3200").unwrap());
    let fetching = blocks.clone();
    let ahead = std::thread::spawn(move || fetching.prefetch());
    for chunk in 0..100 {
        blocks.read(chunk * 32 * BLOCK as u64, &mut [0; 10]).unwrap();
    }
    ahead.join().unwrap();
    assert!(served.load(Ordering::SeqCst) < 100, "most came ahead, in rows");
}

#[test]
fn a_flipped_byte_is_found_when_it_is_read() {
    let (mut body, shape) = image(700);
    body[612 * BLOCK + 99] ^= 4;
    let (url, _) = serve(body, 0, 0);
    let blocks = Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap();
    assert!(blocks.read(0, &mut [0; 4096]).is_ok());
    assert!(blocks.read(612 * BLOCK as u64, &mut [0; 4096]).is_err());
    assert!(matches!(blocks.fault(), Some(FetchError::Mismatch(Mismatch::Data { block: 612, total: 700 }))));
    assert!(!blocks.fetch_rest(Duration::ZERO));
}
