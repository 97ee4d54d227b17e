//! Each instruction of the subset, from text to result: every row is the body of a one-thread kernel that leaves
//! its result in `%out`.

use labshift_rcuda::{
    device::{Device, DeviceError, Dispatch},
    software::device::SoftwareDevice,
};

/// Runs a body; `%out`.
fn run(body: &str, threads: u32) -> Result<Vec<u64>, DeviceError> {
    let text = format!(
        ".version 6.0\n.target sm_50\n.address_size 64\n\
         .global .align 8 .b8 data[64] = {{1, 2, 3, 4, 5, 6, 7, 0x88}};\n\
         .visible .entry test(.param .u64 result, .param .align 4 .b8 block[8])\n{{\n\
         .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %d<16>; .reg .f32 %f<8>; .reg .f64 %g<8>;\n\
         .reg .b64 %out, %result, %at; .reg .b32 %thread;\n\
         .shared .align 16 .b8 shared[256]; .local .align 16 .b8 local[64];\n\
         mov.b64 %out, 0;\n\
         {body}\n\
         ld.param.u64 %result, [result]; mov.u32 %thread, %tid.x; mul.wide.u32 %at, %thread, 8;\n\
         add.u64 %result, %result, %at; st.global.u64 [%result], %out; ret;\n}}\n"
    );
    let mut device = SoftwareDevice::new(1 << 20, 0);
    let module = device.load(&text)?;
    let address = device.allocate(u64::from(threads) * 8)?;
    let mut parameters = address.to_le_bytes().to_vec();
    parameters.extend_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    device.launch(Dispatch {
        module: module.module,
        kernel: 0,
        grid: [1, 1, 1],
        block: [threads, 1, 1],
        shared_bytes: 0,
        stream: 0,
        parameters: &parameters,
    })?;
    let mut raw = vec![0; threads as usize * 8];
    device.read(address, &mut raw, 0)?;
    Ok(raw.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

#[test]
fn one_thread() {
    let f = |v: f32| u64::from(v.to_bits());
    for (body, result) in [
        // Moves.
        ("mov.u64 %out, 7;", 7),
        ("mov.s32 %r1, -1; mov.b64 %out, {%r1, 2};", 0x2_ffff_ffff),
        ("mov.b64 {%r1, %r2}, 0x200000001; mov.b64 %out, {%r2, %r1};", 0x1_0000_0002),
        ("mov.b64 {_, %r2}, 0x200000001; mov.b64 %out, {%r2, 0};", 2),
        ("mov.b64 %out, {1, 2, 3, 4};", 0x0004_0003_0002_0001),
        ("mov.f32 %f1, 0f40490fdb; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", 0x4049_0fdb),
        ("mov.f64 %g1, 0d3FF0000000000000; mov.b64 %out, %g1;", 1f64.to_bits()),
        ("mov.f32 %f1, -1.5; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(-1.5)),
        ("mov.u32 %r1, WARP_SZ; cvt.u64.u32 %out, %r1;", 32),
        ("mov.u32 %r1, 010; cvt.u64.u32 %out, %r1;", 8),
        ("mov.u32 %r1, 0b101; cvt.u64.u32 %out, %r1;", 5),
        // Arithmetic.
        ("add.u64 %out, 3, 4;", 7),
        ("add.sat.s32 %r1, 0x7fffffff, 1; cvt.u64.u32 %out, %r1;", 0x7fff_ffff),
        ("sub.s64 %out, 3, 4;", u64::MAX),
        ("mul.lo.u64 %out, 3, 4;", 12),
        ("mul.hi.u64 %out, 0x8000000000000000, 4;", 2),
        ("mul.wide.s32 %out, -3, 4;", -12i64 as u64),
        ("mad.lo.u64 %out, 3, 4, 5;", 17),
        ("mad.hi.u64 %out, 0x8000000000000000, 4, 5;", 7),
        ("mad.wide.u32 %out, 0xffffffff, 2, 1;", 0x1_ffff_ffff),
        ("div.u64 %out, 17, 5;", 3),
        ("rem.s64 %out, -17, 5;", -2i64 as u64),
        ("min.s64 %out, -1, 5;", u64::MAX),
        ("max.u64 %out, -1, 5;", u64::MAX),
        ("neg.s64 %out, 5;", -5i64 as u64),
        ("abs.s64 %out, -5;", 5),
        ("bfe.u64 %out, 0xabcd, 4, 8;", 0xbc),
        ("add.f32 %f1, 0f3f800000, 0f40000000; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(3.0)),
        ("add.ftz.f32 %f1, 0f00000001, 0f00000001; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", 0),
        ("sub.rn.f64 %g1, 1.0, 0.25; mov.b64 %out, %g1;", 0.75f64.to_bits()),
        ("mul.f64 %g1, 1.5, 2.5; mov.b64 %out, %g1;", 3.75f64.to_bits()),
        ("fma.rn.f64 %g1, 1.5, 2.0, 0.5; mov.b64 %out, %g1;", 3.5f64.to_bits()),
        ("mad.rn.f64 %g1, 1.5, 2.0, 0.5; mov.b64 %out, %g1;", 3.5f64.to_bits()),
        ("div.rn.f64 %g1, 1.0, 4.0; mov.b64 %out, %g1;", 0.25f64.to_bits()),
        ("div.approx.f32 %f1, 1.0, 4.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(0.25)),
        ("sqrt.rn.f64 %g1, 16.0; mov.b64 %out, %g1;", 4f64.to_bits()),
        ("rsqrt.approx.f32 %f1, 16.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(0.25)),
        ("rcp.approx.ftz.f32 %f1, 16.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(0.0625)),
        ("sin.approx.f32 %f1, 0.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", 0),
        ("cos.approx.f32 %f1, 0.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(1.0)),
        ("ex2.approx.f32 %f1, 3.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(8.0)),
        ("lg2.approx.f32 %f1, 8.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(3.0)),
        // Logic.
        ("and.b64 %out, 0xff0, 0x0ff;", 0x0f0),
        ("or.b64 %out, 0xf00, 0x00f;", 0xf0f),
        ("xor.b64 %out, 0xff0, 0x0ff;", 0xf0f),
        ("not.b64 %out, 0;", u64::MAX),
        ("cnot.b64 %out, 0;", 1),
        ("shl.b64 %out, 1, 40;", 1 << 40),
        ("shr.u64 %out, 0x100, 4;", 0x10),
        ("shr.s64 %out, -16, 2;", -4i64 as u64),
        ("popc.b64 %r1, 0xff; cvt.u64.u32 %out, %r1;", 8),
        ("clz.b32 %r1, 1; cvt.u64.u32 %out, %r1;", 31),
        ("brev.b64 %out, 1;", 1 << 63),
        // Predicates.
        ("setp.lt.s32 %p1, -1, 1; selp.b64 %out, 5, 6, %p1;", 5),
        ("setp.gt.u32 %p1|%p2, 1, 2; selp.b64 %out, 5, 6, %p2;", 5),
        ("setp.eq.u32 %p1, 1, 1; setp.eq.and.u32 %p2, 1, 1, !%p1; selp.b64 %out, 5, 6, %p2;", 6),
        ("setp.neu.f32 %p1, 0f7fffffff, 1.0; selp.b64 %out, 5, 6, %p1;", 5),
        ("setp.hi.u32 %p1, -1, 1; selp.b64 %out, 5, 6, %p1;", 5),
        ("setp.eq.u32 %p1, 1, 2; not.pred %p2, %p1; xor.pred %p3, %p1, %p2; @%p3 mov.u64 %out, 9;", 9),
        ("setp.eq.u32 %p1, 1, 2; @%p1 mov.u64 %out, 9; @!%p1 mov.u64 %out, 8;", 8),
        // Conversions.
        ("cvt.s64.s8 %out, 0x80;", -128i64 as u64),
        ("cvt.u64.u16 %out, -1;", 0xffff),
        ("cvt.rzi.s64.f64 %out, -2.75;", -2i64 as u64),
        ("cvt.rni.u64.f32 %out, 2.5;", 2),
        ("cvt.rn.f64.u32 %g1, 3; mov.b64 %out, %g1;", 3f64.to_bits()),
        ("cvt.f64.f32 %g1, 1.5; mov.b64 %out, %g1;", 1.5f64.to_bits()),
        ("cvt.rn.f32.f64 %f1, 1.5; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(1.5)),
        ("cvt.rmi.f64.f64 %g1, -1.5; mov.b64 %out, %g1;", (-2f64).to_bits()),
        ("cvt.sat.u8.s32 %r1, 300; cvt.u64.u32 %out, %r1;", 255),
        ("cvt.sat.f32.f32 %f1, 7.0; mov.b32 %r1, %f1; cvt.u64.u32 %out, %r1;", f(1.0)),
        // Memory.
        ("ld.param.u32 %r1, [block+4]; cvt.u64.u32 %out, %r1;", 0x8877_6655),
        ("ld.param.v2.u16 {%h1, %h2}, [block]; cvt.u64.u16 %out, %h2;", 0x4433),
        ("ld.global.u64 %out, [data];", 0x8807_0605_0403_0201),
        ("ld.global.s8 %r1, [data+7]; cvt.s64.s32 %out, %r1;", -120i64 as u64),
        ("mov.u64 %d1, data; ld.volatile.global.u16 %h1, [%d1+2]; cvt.u64.u16 %out, %h1;", 0x0403),
        ("mov.u64 %d1, data; add.u64 %d1, %d1, 8; ld.u32 %r1, [%d1+-4]; cvt.u64.u32 %out, %r1;", 0x8807_0605),
        ("st.global.v2.u32 [data+8], {1, 2}; ld.global.u64 %out, [data+8];", 0x2_0000_0001),
        ("st.shared.u64 [shared+8], 5; mov.u32 %r1, shared; ld.shared.u64 %out, [%r1+8];", 5),
        ("st.shared.u64 [shared], 5; mov.u64 %d1, shared; cvta.shared.u64 %d2, %d1; ld.u64 %out, [%d2];", 5),
        ("mov.u64 %d1, shared; cvta.shared.u64 %d2, %d1; st.u64 [%d2], 6; ld.shared.u64 %out, [shared];", 6),
        (
            "mov.u64 %d1, shared; cvta.shared.u64 %d2, %d1; cvta.to.shared.u64 %d3, %d2; sub.u64 %out, %d3, %d1;",
            0,
        ),
        ("st.local.v4.u32 [local+16], {1, 2, 3, 4}; ld.local.u64 %out, [local+24];", 0x4_0000_0003),
        ("mov.u64 %d1, local; cvta.local.u64 %d2, %d1; st.u8 [%d2], 6; ld.local.u8 %out, [local];", 6),
        (
            "atom.global.add.u32 %r1, [data+16], 5; atom.global.add.u32 %r1, [data+16], 6; cvt.u64.u32 %out, %r1;",
            5,
        ),
        ("atom.shared.cas.b64 %d1, [shared], 0, 7; atom.shared.exch.b64 %out, [shared], 8;", 7),
        (
            "red.shared.max.s32 [shared], 7; red.relaxed.gpu.shared.min.s32 [shared], 3; ld.shared.u32 %out, [shared];",
            3,
        ),
        ("atom.shared.inc.u32 %r1, [shared], 5; ld.shared.u32 %out, [shared];", 1),
        ("atom.shared.dec.u32 %r1, [shared], 5; ld.shared.u32 %out, [shared];", 5),
        (
            "red.shared.or.b32 [shared], 6; red.shared.and.b32 [shared], 3; red.shared.xor.b32 [shared], 5; ld.shared.u32 %out, [shared];",
            7,
        ),
        ("atom.shared.add.f32 %f1, [shared], 1.5; ld.shared.u32 %out, [shared];", f(1.5)),
        ("membar.gl; fence.acq_rel.gpu; mov.u64 %out, 1;", 1),
        // Control.
        ("mov.u64 %out, 1; bra OVER; mov.u64 %out, 2; OVER:", 1),
        ("AGAIN: add.u64 %out, %out, 1; setp.lt.u64 %p1, %out, 10; @%p1 bra AGAIN;", 10),
        ("{ .reg .u64 %inner; mov.u64 %inner, 3; mov.u64 %out, %inner; }", 3),
        ("bar.sync 0; barrier.cta.sync 1; bar.warp.sync 0xffffffff; mov.u64 %out, 1;", 1),
        (".pragma \"nounroll\"; .loc 1 2 3\nmov.u64 %out, 1;", 1),
        // Special registers.
        ("mov.u32 %r1, %ntid.x; mov.u32 %r2, %nctaid.z; mov.b64 %out, {%r1, %r2};", 0x1_0000_0001),
        ("mov.u32 %r1, %lanemask_ge; cvt.u64.u32 %out, %r1;", 0xffff_ffff),
        ("mov.u32 %r1, %lanemask_gt; cvt.u64.u32 %out, %r1;", 0xffff_fffe),
        ("mov.u32 %r1, %dynamic_smem_size; cvt.u64.u32 %out, %r1;", 0),
    ] {
        assert_eq!(run(body, 1).map_err(|e| e.message), Ok(vec![result]), "{body}");
    }
}

#[test]
fn a_warp_and_a_half() {
    let lane = "mov.u32 %r1, %tid.x;";
    for (body, expected) in [
        ("shfl.sync.up.b32 %r2, %r1, 1, 0, -1;", (|t| if t % 32 == 0 { t } else { t - 1 }) as fn(u64) -> u64),
        ("shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;", |t| t ^ 1),
        ("shfl.sync.idx.b32 %r2, %r1, 3, 31, -1;", |t| t / 32 * 32 + 3),
        ("shfl.sync.idx.b32 %r2|%p1, %r1, 3, 0x1c1f, -1; selp.u32 %r2, %r2, 99, %p1;", |t| t / 4 * 4 + 3),
        // Only the lower 16 lanes: the others go around.
        (
            "mov.u32 %r2, 77; mov.u32 %r3, %laneid; setp.ge.u32 %p1, %r3, 16; @%p1 bra OVER; \
          shfl.sync.down.b32 %r2, %r1, 15, 31, 0xffff; OVER:",
            |t| match t % 32 {
                0 => t + 15,
                1..16 => t,
                _ => 77,
            },
        ),
        ("setp.lt.u32 %p1, %r1, 4; vote.sync.ballot.b32 %r2, %p1, -1;", |t| if t < 32 { 0xf } else { 0 }),
        ("setp.lt.u32 %p1, %r1, 32; vote.sync.all.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2;", |t| {
            u64::from(t < 32)
        }),
        ("setp.eq.u32 %p1, %r1, 40; vote.sync.any.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2;", |t| {
            u64::from(t >= 32)
        }),
        ("setp.eq.u32 %p1, %r1, 40; vote.sync.uni.pred %p2, !%p1, -1; selp.u32 %r2, 1, 0, %p2;", |t| {
            u64::from(t < 32)
        }),
        ("mov.u32 %r2, %warpid; mov.u32 %r3, %nwarpid; mad.lo.u32 %r2, %r3, 10, %r2;", |t| 20 + t / 32),
        // Two barriers of their own for the two warps, then one for all.
        (
            "mov.u32 %r3, %warpid; setp.eq.u32 %p1, %r3, 0; @!%p1 bra SECOND; bar.sync 1, 32; bra ALL; \
          SECOND: bar.sync 2, 16; ALL: bar.sync 0; mov.u32 %r2, 5;",
            |_| 5,
        ),
        // A barrier does not wait for threads that have ended.
        (
            "st.shared.u32 [shared], 0; bar.sync 0; red.shared.add.u32 [shared], 1; bar.sync 0; ld.shared.u32 %r2, [shared];",
            |_| 48,
        ),
    ] {
        let body = format!("{lane} {body} cvt.u64.u32 %out, %r2;");
        let expected: Vec<u64> = (0..48).map(expected).collect();
        assert_eq!(run(&body, 48).map_err(|e| e.message), Ok(expected), "{body}");
    }
}

#[test]
fn what_a_kernel_may_not_do() {
    for (body, threads, message) in [
        ("ld.global.u32 %r1, [data+64];", 1, "4 bytes at"),
        ("mov.u64 %d1, 0; st.global.u32 [%d1], 1;", 1, "4 bytes at 0x0 are not allocated"),
        ("mov.u64 %d1, 8; st.u32 [%d1], 1;", 1, "4 bytes at 0x8 are not allocated"),
        ("mov.u64 %d1, -4; ld.global.u32 %r1, [%d1];", 1, "are not allocated"),
        (
            "ld.shared.u32 %r1, [shared+256];",
            1,
            "4 bytes at offset 0x100 lie outside the 256 bytes of shared memory",
        ),
        ("mov.u32 %r1, -4; st.shared.u32 [%r1], 1;", 1, "of shared memory"),
        ("ld.local.u32 %r1, [local+-4];", 1, "of local memory"),
        ("ld.param.u64 %d1, [block+16];", 1, "of parameter memory"),
        ("ld.global.u32 %r1, [data+2];", 1, "is not aligned to 4 bytes"),
        ("trap;", 1, "gave up (trap)"),
        (
            "mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0; @%p1 bar.sync 0, 2;",
            2,
            "waits for threads that never come",
        ),
    ] {
        let outcome = run(body, threads);
        assert!(outcome.as_ref().is_err_and(|e| e.message.contains(message)), "{body}: {outcome:?}");
        assert!(outcome.is_err_and(|e| e.status.is_fatal() && e.message.contains("PTX line 11")), "{body}");
    }
}

#[test]
fn what_the_text_may_not_say() {
    for (body, message) in [
        (
            "\ntex.2d.v4.f32.s32 {%f1,%f2,%f3,%f4}, [t, {%r1,%r2}];",
            "PTX line 12: the software device does not support the instruction `tex.2d.v4.f32.s32`",
        ),
        ("add.cc.u32 %r1, %r2, %r3;", "does not support the instruction `add.cc.u32`"),
        ("add.rz.f32 %f1, %f2, %f3;", "does not support the instruction `add.rz.f32`"),
        ("shfl.down.b32 %r1, %r2, 1, 31;", "does not support the instruction `shfl.down.b32`"),
        ("call.uni f;", "does not support the instruction `call.uni`"),
        ("cvt.f32.f64 %f1, %g1;", "does not support the instruction `cvt.f32.f64`"),
        ("add.u32 %r1, %r99, 1;", "PTX line 11: `%r99` is not declared"),
        ("add.u32 %r01, %r1, 1;", "`%r01` is not declared"),
        ("bra NOWHERE;", "`NOWHERE` is not declared"),
        ("HERE: HERE:", "`HERE` is declared twice"),
        ("add.u32 %r1, %r2;", "expected , and another operand, found `;`"),
        ("add.u32 %r1, %r2, %r3", "expected ; after the instruction"),
        ("mov.u32 %r1, 0x;", "`0x` is no number that fits here"),
        ("mov.f32 %f1, 1;", "`1` is no number that fits here"),
        (".reg .b32 %many<9999>;", "registers: "),
        (".texref t;", "does not support the directive `.texref`"),
        (".shared .b8 big[65536];", "bytes of shared memory: 65792 exceed the limit of 49152"),
    ] {
        let outcome = run(body, 1);
        assert!(outcome.as_ref().is_err_and(|e| e.message.contains(message)), "{body}: {outcome:?}");
        assert!(outcome.is_err_and(|e| e.status.code() == 218), "{body}");
    }
}
