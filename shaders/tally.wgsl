// Counters of one chunk: gathered per invocation, then per workgroup, then added to the chunk's.
// Needs from the prelude: TALLIES and an index for each.

@group(0) @binding(1) var<storage, read_write> counters: array<atomic<u32>>;

var<private> nan_elems: u32;
var<private> inf_elems: u32;
var<private> clipped_elems: u32;
var<private> excluded_elems: u32;
var<private> nonfinite_out_elems: u32;
var<workgroup> tally_sums: array<atomic<u32>, TALLIES>;

fn clear_tally(lane: u32) {
    if (lane < TALLIES) { atomicStore(&tally_sums[lane], 0u); }
}

fn flush_tally() {
    if (nan_elems != 0u) { atomicAdd(&tally_sums[NAN_ELEMS], nan_elems); }
    if (inf_elems != 0u) { atomicAdd(&tally_sums[INF_ELEMS], inf_elems); }
    if (clipped_elems != 0u) { atomicAdd(&tally_sums[CLIPPED_ELEMS], clipped_elems); }
    if (excluded_elems != 0u) { atomicAdd(&tally_sums[EXCLUDED_ELEMS], excluded_elems); }
    if (nonfinite_out_elems != 0u) { atomicAdd(&tally_sums[NONFINITE_OUT_ELEMS], nonfinite_out_elems); }
}

// An element that is quantized.
fn count(b: u32, r: Recipe) {
    let a = b & MAGNITUDE;
    if (a >= INF) {
        let nan = select(0u, 1u, a > INF);
        nan_elems += nan;
        inf_elems += 1u - nan;
    }
    clipped_elems += select(0u, 1u, clips(b, r));
}

fn drain_tally(lane: u32) {
    if (lane < TALLIES) {
        let sum = atomicLoad(&tally_sums[lane]);
        if (sum != 0u) { atomicAdd(&counters[params.counters + lane], sum); }
    }
}
