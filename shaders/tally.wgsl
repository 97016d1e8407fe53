// Counters of one chunk: gathered per invocation, then per workgroup, then added to the chunk's.
// Needs from the prelude: TALLIES and an index for each.

@group(0) @binding(1) var<storage, read_write> counters: array<atomic<u32>>;

var<private> tally: array<u32, TALLIES>;
var<workgroup> tally_sums: array<atomic<u32>, TALLIES>;

fn clear_tally(lane: u32) {
    if (lane < TALLIES) { atomicStore(&tally_sums[lane], 0u); }
}

fn flush_tally() {
    for (var t = 0u; t < TALLIES; t++) {
        if (tally[t] != 0u) { atomicAdd(&tally_sums[t], tally[t]); }
    }
}

fn drain_tally(lane: u32) {
    if (lane < TALLIES) {
        let sum = atomicLoad(&tally_sums[lane]);
        if (sum != 0u) { atomicAdd(&counters[params.counters + lane], sum); }
    }
}
