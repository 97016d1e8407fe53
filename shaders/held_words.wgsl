// Codes of vectors that lie apart, each written by itself, as neighbours write beside it. Hooks are those of held.wgsl.

@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

fn is_ready(s: u32) -> bool { return true; }

fn keep(k: u32, four: FourSteps) -> vec2<u32> { return words_of(four, select(own.z, 0, UNCLIPPED)); }

fn keep_two(k: u32, p: vec2<u32>, q: vec2<u32>) {
    if (CODE_BITS == 4u) {
        keep_words(k, vec2<u32>(p.x | (q.x << 16u), 0u));
    } else {
        keep_words(k, p);
        keep_words(k + 1u, q);
    }
}

fn keep_words(k: u32, words: vec2<u32>) {
    let at = params.out_at + vector_at(k) * CODE_BITS / 8u;
    codes[at] = words.x;
    if (CODE_BITS == 16u) { codes[at + 1u] = words.y; }
}

fn keep_one(c: u32, field: u32) { anew[CODE_BITS * c / 32u] |= field << ((CODE_BITS * c) & 31u); }

fn keep_anew(k: u32) { keep_words(k, anew.xy); }
