// A dispatch that is about one tensor.

@group(0) @binding(0) var<uniform> params: Params;

// Which tile this workgroup takes.
fn tile_of(group: vec3<u32>, groups: vec3<u32>) -> u32 { return group.x + group.y * groups.x; }
