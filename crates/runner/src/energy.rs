//! What measures a device's energy.

use std::path::{Path, PathBuf};

use sconce_types::EnergyMeter;

/// How a device's energy is measured, if it can be.
pub(crate) struct Energy {
    pub(crate) meter: Option<Box<dyn EnergyMeter>>,
    /// In words.
    pub(crate) description: String,
}

impl Energy {
    fn measured(meter: impl EnergyMeter + 'static, description: &str) -> Self {
        Self { meter: Some(Box::new(meter)), description: description.to_owned() }
    }

    fn none(reason: &str) -> Self {
        Self { meter: None, description: format!("not measured: {reason}") }
    }

    /// The processors' own counters (RAPL), by way of Linux' powercap.
    pub(crate) fn of_cpu() -> Self {
        Self::of_powercap(Path::new("/sys/class/powercap"))
    }

    fn of_powercap(folder: &Path) -> Self {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Self::none("this machine shows no RAPL counters");
        };
        // intel-rapl:0 is a package; intel-rapl:0:0 is a part of it, counted in it.
        let is_package = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.strip_prefix("intel-rapl:").is_some_and(|rest| rest.parse::<u32>().is_ok())
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(is_package);
        paths.sort();
        if paths.is_empty() {
            return Self::none("this machine shows no RAPL counters");
        }
        let packages: Option<Vec<_>> = paths.iter().map(|path| Package::open(path)).collect();
        match packages {
            Some(packages) => Self::measured(Rapl { packages }, "RAPL, all of the processors"),
            None => Self::none("the RAPL counters cannot be read by this user"),
        }
    }

    /// The device's own counter, by way of NVML.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_gpu(uuid: Option<&str>) -> Self {
        let Some(uuid) = uuid else { return Self::none("the device has no UUID") };
        match nvml_wrapper::Nvml::init() {
            Ok(nvml) => {
                let mut meter = Gpu { nvml, uuid: uuid.to_owned() };
                if meter.total_uj().is_some() {
                    Self::measured(meter, "NVML, the device")
                } else {
                    Self::none("NVML has no energy counter for the device")
                }
            }
            Err(error) => Self::none(&format!("no NVML: {error}")),
        }
    }
}

/// All packages of a machine.
struct Rapl {
    packages: Vec<Package>,
}

/// A counter that starts again at 0 once it reaches its range.
struct Package {
    path: PathBuf,
    range: u64,
    last: u64,
    total: u64,
}

impl Package {
    fn open(folder: &Path) -> Option<Self> {
        let path = folder.join("energy_uj");
        let range = read_number(&folder.join("max_energy_range_uj"))?;
        Some(Self { last: read_number(&path)?, path, range, total: 0 })
    }

    fn total(&mut self) -> Option<u64> {
        let now = read_number(&self.path)?;
        let wrapped = if now < self.last { self.range } else { 0 };
        self.total += (now + wrapped).saturating_sub(self.last);
        self.last = now;
        Some(self.total)
    }
}

impl EnergyMeter for Rapl {
    fn total_uj(&mut self) -> Option<u64> {
        self.packages.iter_mut().map(Package::total).sum()
    }
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(feature = "cuda")]
struct Gpu {
    nvml: nvml_wrapper::Nvml,
    uuid: String,
}

#[cfg(feature = "cuda")]
impl EnergyMeter for Gpu {
    fn total_uj(&mut self) -> Option<u64> {
        let device = self.nvml.device_by_uuid(self.uuid.as_str()).ok()?;
        // NVML counts millijoules.
        device.total_energy_consumption().ok().map(|mj| mj * 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_summed_and_counters_may_wrap() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, file: &str, value: u64| {
            let dir = folder.path().join(name);
            std::fs::create_dir_all(&dir).expect("a folder");
            std::fs::write(dir.join(file), format!("{value}\n")).expect("a file");
        };
        for (name, start) in [("intel-rapl:0", 990), ("intel-rapl:1", 10), ("intel-rapl:0:0", 5)] {
            write(name, "max_energy_range_uj", 1_000);
            write(name, "energy_uj", start);
        }
        let mut meter = Energy::of_powercap(folder.path()).meter.expect("it can be read");
        assert_eq!(meter.total_uj(), Some(0));
        write("intel-rapl:0", "energy_uj", 20);
        write("intel-rapl:1", "energy_uj", 60);
        write("intel-rapl:0:0", "energy_uj", 900);
        assert_eq!(meter.total_uj(), Some(30 + 50));
        write("intel-rapl:1", "energy_uj", 61);
        assert_eq!(meter.total_uj(), Some(81));
        std::fs::remove_file(folder.path().join("intel-rapl:1/energy_uj")).expect("it was there");
        assert_eq!(meter.total_uj(), None);
        assert!(Energy::of_powercap(folder.path()).meter.is_none());
        assert!(Energy::of_powercap(&folder.path().join("nothing")).meter.is_none());
    }
}
