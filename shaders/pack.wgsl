// Codes in words: CODE_BITS (4, 8 or 16) each, the first in the lowest bits.

// Word and place of slot i.
fn word_of(i: u32) -> u32 { return i / (32u / CODE_BITS); }
fn shift_of(i: u32) -> u32 { return CODE_BITS * (i % (32u / CODE_BITS)); }

// Slots 4v .. 4v + 3 from the word that holds the first of them and the next one.
fn unpack(word: u32, next: u32, v: u32) -> vec4<u32> {
    if (CODE_BITS == 16u) { return vec4<u32>(word, word >> 16u, next, next >> 16u) & vec4<u32>(FIELD); }
    let low = word >> (shift_of(4u * v) & 31u);
    return vec4<u32>(low, low >> CODE_BITS, low >> ((2u * CODE_BITS) & 31u), low >> ((3u * CODE_BITS) & 31u)) & vec4<u32>(FIELD);
}

// Two words of 16-bit codes; else one word, of 4-bit codes half a word.
fn pack(f: vec4<u32>) -> vec2<u32> {
    if (CODE_BITS == 16u) { return vec2<u32>(f.x | (f.y << 16u), f.z | (f.w << 16u)); }
    return vec2<u32>(
        f.x | (f.y << CODE_BITS) | (f.z << ((2u * CODE_BITS) & 31u)) | (f.w << ((3u * CODE_BITS) & 31u)), 0u,
    );
}

// A word of four codes of 4 or 8 bits, that are so many steps above or below z: their weighted sum. With the sign bit
// flipped all codes are 0 or more, and so no field borrows from the next.
fn pack_steps(k: vec4<u32>, neg: vec4<bool>, z: i32) -> u32 {
    const UP = vec4<u32>(1u, 1u << CODE_BITS, 1u << ((2u * CODE_BITS) & 31u), 1u << ((3u * CODE_BITS) & 31u));
    const ONES = UP.x + UP.y + UP.z + UP.w;
    let p = k * select(UP, vec4<u32>() - UP, neg);
    let zeros = ((bitcast<u32>(z) + params.sign_bit) & FIELD) * ONES;
    return (p.x + p.y + p.z + p.w + zeros) ^ (params.sign_bit * ONES);
}
