// Codes of 32 neighbouring slots, which an invocation writes in vectors of words. Hooks are those of held.wgsl.

@group(0) @binding(4) var<storage, read_write> codes: array<vec4<u32>>;

var<private> earlier: vec2<u32>;

fn is_ready(s: u32) -> bool { return true; }

fn keep(k: u32, four: FourSteps) -> vec2<u32> { return words_of(four, select(own.z, 0, UNCLIPPED)); }

fn codes_at() -> u32 { return params.out_at / 4u + first * CODE_BITS / 32u; }

fn keep_eight(nth: u32, p: vec2<u32>, q: vec2<u32>, r: vec2<u32>, t: vec2<u32>) {
    let at = codes_at();
    if (CODE_BITS == 4u) {
        let words = vec2<u32>(p.x | (q.x << 16u), r.x | (t.x << 16u));
        if (nth == 0u) { earlier = words; } else { codes[at] = vec4<u32>(earlier, words); }
    } else if (CODE_BITS == 8u) {
        codes[at + nth] = vec4<u32>(p.x, q.x, r.x, t.x);
    } else {
        codes[at + 2u * nth] = vec4<u32>(p, q);
        codes[at + 2u * nth + 1u] = vec4<u32>(r, t);
    }
}

fn keep_one(c: u32, field: u32) { anew[CODE_BITS * c / 32u] |= field << ((CODE_BITS * c) & 31u); }

fn keep_anew(k: u32) {
    let at = 4u * codes_at() + k * CODE_BITS / 8u;
    codes[at / 4u][at % 4u] = anew.x;
    if (CODE_BITS == 16u) { codes[at / 4u][at % 4u + 1u] = anew.y; }
}
