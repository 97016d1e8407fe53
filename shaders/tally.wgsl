// Counters of one chunk. What is counted is out of the ordinary, so that an invocation seldom has anything to add.
// Needs from the prelude: an index for each.

@group(0) @binding(1) var<storage, read_write> counters: array<atomic<u32>>;

var<private> nan_elems: u32;
var<private> inf_elems: u32;
var<private> clipped_elems: u32;
var<private> excluded_elems: u32;
var<private> nonfinite_out_elems: u32;

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

fn flush_tally() {
    if (nan_elems != 0u) { atomicAdd(&counters[params.counters + NAN_ELEMS], nan_elems); }
    if (inf_elems != 0u) { atomicAdd(&counters[params.counters + INF_ELEMS], inf_elems); }
    if (clipped_elems != 0u) { atomicAdd(&counters[params.counters + CLIPPED_ELEMS], clipped_elems); }
    if (excluded_elems != 0u) { atomicAdd(&counters[params.counters + EXCLUDED_ELEMS], excluded_elems); }
    if (nonfinite_out_elems != 0u) { atomicAdd(&counters[params.counters + NONFINITE_OUT_ELEMS], nonfinite_out_elems); }
}
