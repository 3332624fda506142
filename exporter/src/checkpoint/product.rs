//! Computes `B @ A` in f32. Each sum is a chain of fused multiply-adds in the order of the rank, so
//! its bits are those of the reference for the published LoRA shapes. The inner loop keeps a small
//! tile of sums in registers; the f32 rate of the machine is measured with it too.

use std::time::{Duration, Instant};

use multiversion::multiversion;
use multiversion::target::match_target;

/// Computes `out = b @ a` with `a` `[rank, columns]`, `b` `[rows, rank]` and `out`
/// `[rows, columns]`, all row-major. A processor without fused instructions computes the same bits
/// slowly.
///
/// # Panics
/// A slice is shorter than its shape says.
pub(super) fn product(a: &[f32], b: &[f32], rank: usize, columns: usize, out: &mut [f32]) {
    if rank == 0 || columns == 0 {
        out.fill(0.0);
        return;
    }
    blocked(a, b, rank, columns, out);
}

/// Columns of a tile. The compiler keeps one register for each lane group of each row: 4 x 32 sums
/// are 8 registers of 512 bits.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn blocked(a: &[f32], b: &[f32], rank: usize, columns: usize, out: &mut [f32]) {
    match_target! {
        "x86_64+avx512f" => tiles::<4, 32>(a, b, rank, columns, out),
        "x86_64+avx2+fma" => tiles::<6, 16>(a, b, rank, columns, out),
        _ => tiles::<4, 16>(a, b, rank, columns, out),
    }
}

#[inline(always)]
fn tiles<const R: usize, const C: usize>(
    a: &[f32],
    b: &[f32],
    rank: usize,
    columns: usize,
    out: &mut [f32],
) {
    let rows = out.len() / columns;
    let packed = pack_rows::<R>(b, rank, rows);
    let mut panel = vec![[0f32; C]; rank];
    for c in (0..columns).step_by(C) {
        let width = C.min(columns - c);
        for (to, from) in panel.iter_mut().zip(a.chunks_exact(columns)) {
            to[..width].copy_from_slice(&from[c..c + width]);
            to[width..].fill(0.0);
        }
        for (group, b) in packed.chunks_exact(rank).enumerate() {
            let sums = sums::<R, C>(&panel, b);
            for (row, sums) in (group * R..rows).zip(&sums) {
                out[row * columns + c..][..width].copy_from_slice(&sums[..width]);
            }
        }
    }
}

/// Puts `R` rows of `b` side by side, rank by rank. Zeros fill the last group.
fn pack_rows<const R: usize>(b: &[f32], rank: usize, rows: usize) -> Vec<[f32; R]> {
    let mut packed = vec![[0f32; R]; rows.div_ceil(R) * rank];
    for (row, b) in b.chunks_exact(rank).take(rows).enumerate() {
        let group = &mut packed[row / R * rank..][..rank];
        for (to, &b) in group.iter_mut().zip(b) {
            to[row % R] = b;
        }
    }
    packed
}

#[inline(always)]
fn sums<const R: usize, const C: usize>(a: &[[f32; C]], b: &[[f32; R]]) -> [[f32; C]; R] {
    let mut sums = [[0f32; C]; R];
    for (a, b) in a.iter().zip(b) {
        for (sums, &b) in sums.iter_mut().zip(b) {
            for (sum, &a) in sums.iter_mut().zip(a) {
                *sum = b.mul_add(a, *sum);
            }
        }
    }
    sums
}

/// Measures the multiply-adds a second of `threads` threads together, for about `time`, on matrices
/// that stay in their caches.
pub(crate) fn rate(threads: usize, time: Duration) -> f64 {
    const RANK: usize = 128;
    const COLUMNS: usize = 512;
    const ROWS: usize = 64;
    let start = Instant::now();
    let rounds: u64 = std::thread::scope(|scope| {
        let run = || {
            let (a, b) = (vec![0.5; RANK * COLUMNS], vec![0.25; ROWS * RANK]);
            let (mut out, mut rounds) = (vec![0.0; ROWS * COLUMNS], 0u64);
            // At least one round: on a busy machine a thread may begin after the time is over.
            loop {
                product(std::hint::black_box(&a), &b, RANK, COLUMNS, &mut out);
                std::hint::black_box(&mut out);
                rounds += 1;
                if start.elapsed() >= time {
                    return rounds;
                }
            }
        };
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(run)).collect();
        workers.into_iter().map(|w| w.join().unwrap_or(0)).sum()
    });
    let each = (RANK * COLUMNS * ROWS) as f64;
    rounds as f64 * each / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(i: usize) -> f32 {
        (i as f32 * 0.37).sin()
    }

    #[test]
    fn every_sum_is_fused_in_order_whatever_the_tiles() {
        for (rows, columns, rank) in [(1, 1, 1), (4, 32, 8), (7, 45, 5), (13, 129, 128)] {
            let a: Vec<f32> = (0..rank * columns).map(wave).collect();
            let b: Vec<f32> = (0..rows * rank).map(|i| wave(i + 3)).collect();
            let mut out = vec![f32::NAN; rows * columns];
            product(&a, &b, rank, columns, &mut out);
            for (i, &got) in out.iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let want = (0..rank).fold(0f32, |sum, k| {
                    b[row * rank + k].mul_add(a[k * columns + column], sum)
                });
                assert_eq!(
                    got.to_bits(),
                    want.to_bits(),
                    "{rows} {columns} {rank}: {i}"
                );
            }
        }
    }

    #[test]
    fn a_rate_is_measured() {
        assert!(rate(2, Duration::from_millis(5)) > 1e6);
        // Even where no time is left when a thread begins.
        assert!(rate(2, Duration::ZERO) > 0.0);
    }
}
