// Quantize in two passes: what it needs of each range unit, min_max and scale have found.

@group(0) @binding(3) var<storage, read> recipes: array<Recipe>;

fn prepare(tile: u32, lane: u32) {}

fn recipe_of(unit: u32) -> Recipe { return recipes[params.recipes_at + unit]; }
