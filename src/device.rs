//! What computed a result.

use std::fmt;
use std::ops::Deref;

/// The adapter (or the CPU path) that computed a result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The adapter's place in [`devices`](crate::devices); `None` of the CPU path and of a
    /// caller's own device.
    pub index: Option<usize>,
    /// The adapter's name, or `cpu`.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl`, or `cpu` of the CPU path.
    pub backend: String,
    /// `discrete-gpu`, `integrated-gpu`, `virtual-gpu`, `cpu` or `other`.
    pub device_type: String,
    /// The driver's name and version.
    pub driver: String,
    /// What the adapter allows; `None` of the CPU path.
    pub limits: Option<DeviceLimits>,
}

/// The limits of an adapter that decide how work is cut. None of them limits a tensor's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceLimits {
    /// The largest buffer.
    pub max_buffer_bytes: u64,
    /// The largest part of a buffer that a kernel can bind.
    pub max_binding_bytes: u64,
    /// The largest workgroup, in invocations.
    pub max_workgroup: u32,
    /// The most workgroups per dimension of a dispatch.
    pub max_workgroups_per_dimension: u32,
    /// A workgroup's memory.
    pub workgroup_memory_bytes: u32,
}

impl DeviceInfo {
    /// The CPU path.
    pub fn cpu() -> Self {
        Self {
            index: None,
            name: "cpu".to_owned(),
            backend: "cpu".to_owned(),
            device_type: "cpu".to_owned(),
            driver: format!("{} threads", rayon::current_num_threads()),
            limits: None,
        }
    }

    /// Whether this is the CPU path, and no adapter.
    pub fn is_cpu_path(&self) -> bool {
        self.backend == "cpu"
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_cpu_path() {
            return write!(f, "CPU path ({})", self.driver);
        }
        write!(f, "{} ({}, {})", self.name, self.backend, self.driver)
    }
}

/// A value, and what computed it.
#[derive(Clone, Debug)]
pub struct Computed<T> {
    /// The value.
    pub value: T,
    /// What computed it.
    pub device: DeviceInfo,
}

impl<T> Deref for Computed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
