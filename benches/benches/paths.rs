//! Wall time of the hot paths: `just micro`. Their instructions are what is checked (`just instructions`); time says what
//! instructions do not: waiting for memory, for the kernel, for the disk.
#![expect(clippy::expect_used, reason = "a measurement that fails has nothing to say")]

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use highwater_benches::path;

// The allocator of `highwater`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn paths(criterion: &mut Criterion) {
    for path in path::ALL {
        criterion.bench_function(path.name, |bencher| {
            // Made only if it is not filtered out.
            let mut prepared = (path.prepare)().expect("prepare the path");
            bencher.iter_custom(|count| {
                let start = Instant::now();
                prepared.repeat(count).expect("go the path");
                start.elapsed()
            });
        });
    }
}

criterion_group!(benches, paths);
criterion_main!(benches);
