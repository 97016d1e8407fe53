//! The adapter that is measured, if any.

#[cfg(feature = "gpu")]
pub(super) use with_gpu::Adapter;
#[cfg(not(feature = "gpu"))]
pub(super) use without_gpu::Adapter;

use super::Wanted;
use super::figures::Start;
use super::measure::Checked;
use wgpu_quant::{DeviceInfo, Result};

#[cfg(feature = "gpu")]
mod with_gpu {
    use super::super::super::args::Region;
    use super::super::{host, resident};
    use super::{Checked, DeviceInfo, Result, Start, Wanted};
    use std::time::Instant;
    use wgpu_quant::gpu::{DEVICE_VARIABLE, Select};
    use wgpu_quant::{Error, Gpu, Scheme, Spec, Tensor};

    pub(in super::super) struct Adapter {
        gpu: Gpu,
        device_seconds: f64,
    }

    impl Adapter {
        /// What `--device` names; none of the CPU path, nor where `auto` finds no hardware.
        pub(in super::super) fn open(wanted: &str, notes: &mut Vec<String>) -> Result<Option<Self>> {
            let started = Instant::now();
            let opened = match wanted {
                "cpu" => return Ok(None),
                "auto" => match std::env::var(DEVICE_VARIABLE) {
                    Ok(named) if named != "auto" && !named.is_empty() => return Self::open(&named, notes),
                    _ => Gpu::open(&Select::Hardware),
                },
                named => Gpu::open(&Select::parse(named)),
            };
            match opened {
                Ok(gpu) => Ok(Some(Self { gpu, device_seconds: started.elapsed().as_secs_f64() })),
                Err(Error::NoAdapter { .. }) if wanted == "auto" => {
                    notes.push("no hardware adapter; --device gpu takes a software one".to_owned());
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        }

        pub(in super::super) fn info(&self) -> &DeviceInfo {
            self.gpu.info()
        }

        /// What a program waits for that quantizes one small tensor.
        pub(in super::super) fn start(&self) -> Result<Start> {
            let x = vec![1.0; 64 * 1024];
            let call = || {
                let started = Instant::now();
                self.gpu.quantize(Tensor::new(&x, &[64, 1024])?, &Spec::new(Scheme::INT8_ABSMAX))?;
                Ok(started.elapsed().as_secs_f64())
            };
            let (first_call_seconds, second_call_seconds) = (call()?, call()?);
            Ok(Start { device_seconds: self.device_seconds, first_call_seconds, second_call_seconds })
        }

        /// What of it is measured with this tensor.
        pub(in super::super) fn cases<'a>(&'a self, wanted: &Wanted<'a>) -> Result<Checked<'a>> {
            let mut all = Checked::default();
            if wanted.has(Region::Kernels) {
                all.extend(resident::cases(&self.gpu, wanted)?);
            }
            if wanted.has(Region::Host) {
                all.extend(host::gpu(&self.gpu, wanted)?);
            }
            Ok(all)
        }
    }
}

#[cfg(not(feature = "gpu"))]
mod without_gpu {
    use super::{Checked, DeviceInfo, Result, Start, Wanted};
    use wgpu_quant::Backend;

    /// There is none in this build.
    pub(in super::super) enum Adapter {}

    impl Adapter {
        pub(in super::super) fn open(wanted: &str, notes: &mut Vec<String>) -> Result<Option<Self>> {
            notes.push(format!("the CPU path only: {}", Backend::open(wanted)?.reason()));
            Ok(None)
        }

        pub(in super::super) fn info(&self) -> &DeviceInfo {
            match *self {}
        }

        pub(in super::super) fn start(&self) -> Result<Start> {
            match *self {}
        }

        pub(in super::super) fn cases<'a>(&'a self, _: &Wanted<'a>) -> Result<Checked<'a>> {
            match *self {}
        }
    }
}
