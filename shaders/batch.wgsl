// A dispatch that is about many tensors: a row of a table for each, in the order of their workgroups.

@group(0) @binding(0) var<storage, read> table: array<Params>;

var<private> params: Params;

// Finds the row that this workgroup belongs to, and which of its tiles it takes. What a grid has beyond the last tile
// falls to the last row, behind its elements.
fn tile_of(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    let workgroup = group.x + group.y * groups.x;
    var row = 0u;
    var left = table[0].rows;
    for (var i = 0u; i < 32u; i++) {
        if (left <= 1u) { break; }
        // Whether the workgroup comes before the first row of the second half.
        let first_half = left >> 1u;
        let before = workgroup < table[row + first_half].first_workgroup;
        row = select(row + first_half, row, before);
        left = select(left - first_half, first_half, before);
    }
    params = table[row];
    return workgroup - params.first_workgroup;
}
