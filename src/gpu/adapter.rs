//! Finding an adapter, and opening it without a window.

use crate::device::{DeviceInfo, DeviceLimits};
use crate::error::{Error, Result};
use std::fmt;

/// The environment variable that [`Select::from_env`] reads.
pub const DEVICE_VARIABLE: &str = "WGPU_QUANT_DEVICE";

/// Storage buffers that the largest kernel binds.
pub const STORAGE_BUFFERS: u32 = 6;

/// The features that a device must have: none.
pub const REQUIRED_FEATURES: wgpu::Features = wgpu::Features::empty();

/// The features that are used where a device has them: to [time kernels](super::Tuning::timestamps) and to keep
/// [compiled kernels](super::Gpu::with_pipeline_cache).
pub const OPTIONAL_FEATURES: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::PIPELINE_CACHE);

/// The limits to request of an adapter: the default ones, as far as it has them, and its own for the sizes of buffers and
/// bindings. Kernels run on less, [`STORAGE_BUFFERS`] and 16 KiB of workgroup memory; smaller bindings cut tensors into more
/// pieces.
pub fn required_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let allowed = adapter.limits();
    wgpu::Limits {
        max_buffer_size: allowed.max_buffer_size,
        max_storage_buffer_binding_size: allowed.max_storage_buffer_binding_size,
        ..wgpu::Limits::default().or_worse_values_from(&allowed)
    }
}

/// Which adapter to open.
///
/// ```
/// use wgpu_quant::gpu::Select;
/// assert_eq!(Select::parse("gpu"), Select::Best);
/// assert_eq!(Select::parse("1"), Select::Index(1));
/// assert_eq!(Select::parse("vulkan"), Select::Backend(wgpu_quant::wgpu::Backend::Vulkan));
/// assert_eq!(Select::parse("llvmpipe"), Select::Name("llvmpipe".to_owned()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// The best there is: hardware before software, discrete before integrated, Vulkan, Metal and DX12
    /// before GL.
    #[default]
    Best,
    /// The same, but no software adapter, and none of GL.
    Hardware,
    /// The adapter of this index in [`adapters`].
    Index(usize),
    /// The first adapter whose name holds this text, whatever the case.
    Name(String),
    /// The best adapter of this backend.
    Backend(wgpu::Backend),
}

impl Select {
    /// `gpu` (or `auto`, or nothing) is the best adapter, a number an index, `vulkan`, `metal`, `dx12` and `gl` a backend;
    /// anything else is a part of the name.
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "" | "auto" | "gpu" => Self::Best,
            "vulkan" => Self::Backend(wgpu::Backend::Vulkan),
            "metal" => Self::Backend(wgpu::Backend::Metal),
            "dx12" => Self::Backend(wgpu::Backend::Dx12),
            "gl" => Self::Backend(wgpu::Backend::Gl),
            lower => lower.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Index),
        }
    }

    /// What the environment variable `WGPU_QUANT_DEVICE` says, or the best adapter.
    pub fn from_env() -> Self {
        std::env::var(DEVICE_VARIABLE).map_or(Self::Best, |text| Self::parse(&text))
    }

    fn admits(&self, index: usize, info: &wgpu::AdapterInfo) -> bool {
        match self {
            Self::Best => true,
            Self::Hardware => is_hardware(info.device_type),
            Self::Index(wanted) => index == *wanted,
            Self::Name(part) => info.name.to_lowercase().contains(&part.to_lowercase()),
            Self::Backend(backend) => info.backend == *backend,
        }
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("able to compute"),
            Self::Hardware => f.write_str("hardware"),
            Self::Index(index) => write!(f, "number {index}"),
            Self::Name(name) => write!(f, "named like {name:?}"),
            Self::Backend(backend) => write!(f, "of backend {backend}"),
        }
    }
}

fn is_hardware(device_type: wgpu::DeviceType) -> bool {
    matches!(
        device_type,
        wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu
    )
}

/// The rank of a software adapter.
const SOFTWARE: u32 = 4;

/// Smaller is better.
fn rank(info: &wgpu::AdapterInfo) -> u32 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        // The GL backend cannot always tell, and then says "other".
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => SOFTWARE,
    }
}

/// Why an adapter cannot run the kernels, if it cannot.
fn unfit(adapter: &wgpu::Adapter) -> Option<String> {
    let flags = adapter.get_downlevel_capabilities().flags;
    if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("no compute shaders".to_owned());
    }
    let buffers = adapter.limits().max_storage_buffers_per_shader_stage;
    (buffers < STORAGE_BUFFERS).then(|| format!("{buffers} storage buffers per stage, {STORAGE_BUFFERS} needed"))
}

pub(super) fn info_of(info: &wgpu::AdapterInfo, limits: &wgpu::Limits, index: Option<usize>) -> DeviceInfo {
    DeviceInfo {
        index,
        name: info.name.clone(),
        backend: info.backend.to_string(),
        device_type: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete-gpu",
            wgpu::DeviceType::IntegratedGpu => "integrated-gpu",
            wgpu::DeviceType::VirtualGpu => "virtual-gpu",
            wgpu::DeviceType::Cpu => "cpu",
            wgpu::DeviceType::Other => "other",
        }
        .to_owned(),
        driver: [info.driver.as_str(), info.driver_info.as_str()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
        limits: Some(DeviceLimits {
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_workgroup: limits.max_compute_invocations_per_workgroup,
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
        }),
    }
}

/// An adapter of this machine, and what it allows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterDescription {
    /// Name, backend, driver and limits.
    pub info: DeviceInfo,
    /// Whether it is hardware; software adapters are never chosen by `auto`.
    pub hardware: bool,
    /// Why it cannot run the kernels, if it cannot.
    pub unfit: Option<String>,
}

/// The backends that machines have today, and the one that is asked last: GL starts slowly, talks on stderr
/// where there is no desktop, and shows adapters that the others show too.
const FIRST: wgpu::Backends = wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);
const LAST: wgpu::Backends = wgpu::Backends::GL;

async fn enumerate(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() };
    wgpu::Instance::new(descriptor).enumerate_adapters(backends).await
}

/// Every adapter of this machine, in the order of their indices.
pub async fn adapters() -> Vec<AdapterDescription> {
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
        let info = adapter.get_info();
        AdapterDescription {
            info: info_of(&info, &adapter.limits(), Some(index)),
            hardware: is_hardware(info.device_type),
            unfit: unfit(adapter),
        }
    };
    let mut all = enumerate(FIRST).await;
    all.extend(enumerate(LAST).await);
    all.iter().enumerate().map(describe).collect()
}

/// The best of these adapters that is admitted and fit; `tried` gets a line for each.
fn choose(select: &Select, all: &[wgpu::Adapter], first_index: usize, tried: &mut Vec<String>) -> Option<usize> {
    let mut best: Option<(u32, usize)> = None;
    for (i, adapter) in all.iter().enumerate() {
        let info = adapter.get_info();
        let unfit = unfit(adapter);
        let why = unfit.as_deref().unwrap_or("fit");
        tried.push(format!("{}: {} ({}, {why})", first_index + i, info.name, info.backend));
        let better = best.is_none_or(|(found, _)| rank(&info) < found);
        if select.admits(first_index + i, &info) && unfit.is_none() && better {
            best = Some((rank(&info), i));
        }
    }
    best.map(|(_, i)| i)
}

/// Opens the best adapter that is admitted and fit, with all that it allows.
pub(super) async fn open(select: &Select) -> Result<(DeviceInfo, wgpu::Device, wgpu::Queue)> {
    let mut tried = Vec::new();
    let mut first_index = 0;
    let mut found: Option<(u32, usize, wgpu::Adapter)> = None;
    for backends in [FIRST, LAST] {
        let all = enumerate(backends).await;
        if let Some(i) = choose(select, &all, first_index, &mut tried) {
            let rank = rank(&all[i].get_info());
            // Only hardware that GL alone shows beats a software adapter that came first.
            if found.as_ref().is_none_or(|&(best, ..)| rank < best) {
                found = Some((rank, first_index + i, all[i].clone()));
            }
        }
        let settled = found.as_ref().is_some_and(|&(rank, ..)| rank < SOFTWARE || *select != Select::Best);
        if settled || *select == Select::Hardware {
            break;
        }
        first_index += all.len();
    }
    let Some((_, index, adapter)) = found else {
        let tried = match tried.len() {
            0 => {
                "this machine has no adapter (a software Vulkan driver such as Mesa's lavapipe gives it one)".to_owned()
            }
            _ => format!("found {}", tried.join("; ")),
        };
        return Err(Error::NoAdapter { wanted: select.to_string(), tried });
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("wgpu-quant device"),
        required_features: adapter.features() & wgpu::Features::TIMESTAMP_QUERY,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let info = info_of(&adapter.get_info(), &adapter.limits(), Some(index));
    let (device, queue) = adapter
        .request_device(&descriptor)
        .await
        .map_err(|e| Error::RequestDevice { adapter: info.name.clone(), message: e.to_string() })?;
    Ok((info, device, queue))
}
