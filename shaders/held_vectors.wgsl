// Codes of 32 neighbouring slots, which an invocation writes in vectors of words. Hooks are those of held.wgsl.

@group(0) @binding(4) var<storage, read_write> codes: array<vec4<u32>>;

var<private> vector: vec4<u32>;      // of words, as far as it is filled

fn is_ready(s: u32) -> bool { return true; }

fn keep(k: u32, four: FourSteps) -> vec2<u32> { return words_of(four, select(own.z, 0, UNCLIPPED)); }

fn codes_at() -> u32 { return params.out_at / 4u + first * CODE_BITS / 32u; }

fn keep_two(k: u32, p: vec2<u32>, q: vec2<u32>) {
    if (CODE_BITS == 4u) {
        vector = vec4<u32>(vector.yzw, p.x | (q.x << 16u));
        if (k == 6u) { codes[codes_at()] = vector; }
    } else if (CODE_BITS == 8u) {
        vector = vec4<u32>(vector.zw, p.x, q.x);
        if (k % 4u == 2u) { codes[codes_at() + k / 4u] = vector; }
    } else {
        codes[codes_at() + k / 2u] = vec4<u32>(p, q);
    }
}

fn keep_one(c: u32, field: u32) { anew[CODE_BITS * c / 32u] |= field << ((CODE_BITS * c) & 31u); }

fn keep_anew(k: u32) {
    let at = 4u * codes_at() + k * CODE_BITS / 8u;
    codes[at / 4u][at % 4u] = anew.x;
    if (CODE_BITS == 16u) { codes[at / 4u][at % 4u + 1u] = anew.y; }
}
