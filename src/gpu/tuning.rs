//! What of the work's cut can be set.

/// How the work is cut; results never depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tuning {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// The most elements per buffer, when the device's limits allow as many; a multiple of 8.
    pub chunk_elems: u32,
    /// The most range units whose scales share a buffer, when the device's limits allow as many.
    pub slab_units: usize,
    /// The most workgroups per dimension, when the device's limits allow as many.
    pub workgroups_per_dimension: u32,
    /// How long a call waits for the device.
    pub timeout_seconds: u64,
    /// Whether each kernel's time is taken, where the device can; each is then a pass of its own.
    pub timestamps: bool,
    /// Whether range units that a workgroup can take are quantized in one pass.
    pub one_pass: bool,
    /// Whether invocations hold their slots then, where units are made of pieces of 32.
    pub held: bool,
    /// Whether work is cut as GPUs like it, and not software adapters: invocations that share such a unit take its vectors in turn,
    /// and not neighbouring ones each, and of long units the loss takes what codes stand for from a table.
    pub spread: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            workgroup: 256,
            // 1 GiB of f32: far above what most devices bind at once.
            chunk_elems: 1 << 28,
            slab_units: 1 << 26,
            workgroups_per_dimension: 65_535,
            timeout_seconds: 600,
            timestamps: false,
            one_pass: true,
            held: true,
            spread: true,
        }
    }
}

impl Tuning {
    /// The default with this many invocations per workgroup.
    #[must_use]
    pub fn workgroup(self, workgroup: u32) -> Self {
        Self { workgroup, ..self }
    }

    /// The same with at most this many elements per buffer.
    #[must_use]
    pub fn chunk_elems(self, chunk_elems: u32) -> Self {
        Self { chunk_elems, ..self }
    }

    /// The same with at most this many range units to a buffer.
    #[must_use]
    pub fn slab_units(self, slab_units: usize) -> Self {
        Self { slab_units, ..self }
    }

    /// The same with at most this many workgroups per dimension.
    #[must_use]
    pub fn workgroups_per_dimension(self, workgroups_per_dimension: u32) -> Self {
        Self { workgroups_per_dimension, ..self }
    }

    /// The same, waiting at most this long for the device.
    #[must_use]
    pub fn timeout_seconds(self, timeout_seconds: u64) -> Self {
        Self { timeout_seconds, ..self }
    }

    /// The same, quantizing in one pass where that is possible, or always in two.
    #[must_use]
    pub fn one_pass(self, one_pass: bool) -> Self {
        Self { one_pass, ..self }
    }

    /// The same, with invocations that hold their slots where that is possible, or that always read them twice.
    #[must_use]
    pub fn held(self, held: bool) -> Self {
        Self { held, ..self }
    }

    /// The same, with [`spread`](Self::spread) so.
    #[must_use]
    pub fn spread(self, spread: bool) -> Self {
        Self { spread, ..self }
    }

    /// The same, taking each kernel's time.
    #[must_use]
    pub fn timestamps(self, timestamps: bool) -> Self {
        Self { timestamps, ..self }
    }
}
