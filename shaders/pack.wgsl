// Four codes of 8 bits to a word, the first in the lowest byte.

fn packed(q: i32, c: u32) -> u32 { return (bitcast<u32>(q) & 0xffu) << (8u * c); }

fn code_at(word: u32, c: u32) -> i32 { return bitcast<i32>(word << (24u - 8u * c)) >> 24u; }
