//! The operator's maxima for sandboxes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::reply::ErrorReply;
use crate::error::{Result, one_line};
use crate::quantity::{
    DEFAULT_MEMORY, DEFAULT_STORAGE, MIN_MEMORY, MIN_STORAGE, parse_bytes, parse_cpu,
};
use crate::session_id::SessionId;
use crate::spec::{DEFAULT_TTL, SandboxSpec};

/// Maxima as they were set.
#[derive(Default)]
pub(super) struct MaximaSettings {
    pub(super) ttl: Option<Duration>,
    pub(super) memory: Option<String>,
    pub(super) storage: Option<String>,
    pub(super) cpu: Option<String>,
    pub(super) sandboxes: Option<usize>,
    /// Empty for any image.
    pub(super) images: Vec<String>,
}

/// The maxima of a server, and the sandboxes that count.
pub(super) struct Maxima {
    ttl: Option<Duration>,
    memory: Option<Quantity>,
    storage: Option<Quantity>,
    cpu: Option<Quantity>,
    sandboxes: Option<usize>,
    images: Vec<String>,
    existing: Mutex<HashMap<SessionId, Lifetime>>,
}

/// A quantity as it was set, and as a number.
struct Quantity {
    text: String,
    amount: u64,
}

struct Lifetime {
    ttl: Duration,
    ends: Instant,
}

impl Lifetime {
    fn starting_now(ttl: Duration) -> Lifetime {
        // At most 365 days.
        let ends = Instant::now() + ttl;
        Lifetime { ttl, ends }
    }
}

impl Maxima {
    pub(super) fn new(settings: MaximaSettings) -> Result<Maxima> {
        let quantity = |text: Option<String>, parse: &dyn Fn(&str) -> Result<u64>| {
            let parsed = text.map(|text| parse(&text).map(|amount| Quantity { text, amount }));
            parsed.transpose()
        };
        Ok(Maxima {
            ttl: settings.ttl,
            memory: quantity(settings.memory, &|text| {
                parse_bytes("max_memory", text, MIN_MEMORY)
            })?,
            storage: quantity(settings.storage, &|text| {
                parse_bytes("max_storage", text, MIN_STORAGE)
            })?,
            cpu: quantity(settings.cpu, &parse_cpu)?,
            sandboxes: settings.sandboxes,
            images: settings.images,
            existing: Mutex::default(),
        })
    }

    /// Refuses settings beyond a maximum, and caps the defaults of those that are not set.
    pub(super) fn apply(&self, mut spec: SandboxSpec) -> Result<SandboxSpec, ErrorReply> {
        if let Some(max) = self.ttl {
            if spec.ttl.is_some_and(|ttl| ttl > max) {
                let (ttl, max) = (spec.get_ttl().as_secs(), max.as_secs());
                return Err(exceeds("TTL", &format!("{ttl} s"), &format!("{max} s")));
            }
            spec = spec.or_ttl(max.min(DEFAULT_TTL));
        }
        let memory = |text: &str| parse_bytes("memory limit", text, MIN_MEMORY);
        let storage = |text: &str| parse_bytes("storage limit", text, MIN_STORAGE);
        let default = Some(DEFAULT_MEMORY);
        cap(
            "memory limit",
            &self.memory,
            &mut spec.memory,
            default,
            &memory,
        )?;
        let default = Some(DEFAULT_STORAGE);
        cap(
            "storage limit",
            &self.storage,
            &mut spec.storage,
            default,
            &storage,
        )?;
        cap("CPU limit", &self.cpu, &mut spec.cpu, None, &parse_cpu)?;
        self.check_image(&spec)?;
        Ok(spec)
    }

    fn check_image(&self, spec: &SandboxSpec) -> Result<(), ErrorReply> {
        match spec.get_image() {
            Some(image) if !self.images.is_empty() && !self.images.iter().any(|i| i == image) => {
                let image = one_line(image);
                let allowed = self.images.join(", ");
                let text =
                    format!("image {image:?} is not allowed on this server, only: {allowed}");
                Err(ErrorReply::bad_request(text))
            }
            _ => Ok(()),
        }
    }

    fn existing(&self) -> MutexGuard<'_, HashMap<SessionId, Lifetime>> {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a sandbox that is about to be created. Returns true if it is new.
    pub(super) fn begin(&self, id: &SessionId, ttl: Duration) -> Result<bool, ErrorReply> {
        let Some(max) = self.sandboxes else {
            return Ok(false);
        };
        let mut existing = self.existing();
        if !existing.contains_key(id) && existing.len() >= max {
            let now = Instant::now();
            existing.retain(|_, lifetime| lifetime.ends > now);
            if existing.len() >= max {
                return Err(ErrorReply::too_many_sandboxes(max));
            }
        }
        let lifetime = Lifetime::starting_now(ttl);
        Ok(existing.insert(id.clone(), lifetime).is_none())
    }

    /// Starts the TTL of a sandbox that counts.
    pub(super) fn renew(&self, id: &SessionId) {
        if let Some(lifetime) = self.existing().get_mut(id) {
            *lifetime = Lifetime::starting_now(lifetime.ttl);
        }
    }

    /// Stops counting a sandbox that does not exist.
    pub(super) fn end(&self, id: &SessionId) {
        self.existing().remove(id);
    }
}

/// Checks one setting. Without a value it is set to the maximum, unless the default is smaller.
fn cap(
    name: &str,
    max: &Option<Quantity>,
    setting: &mut Option<String>,
    default: Option<u64>,
    parse: &dyn Fn(&str) -> Result<u64>,
) -> Result<(), ErrorReply> {
    let Some(max) = max else {
        return Ok(());
    };
    match setting {
        Some(text) if parse(text)? > max.amount => Err(exceeds(name, text, &max.text)),
        Some(_) => Ok(()),
        None => {
            if default.is_none_or(|default| default > max.amount) {
                *setting = Some(max.text.clone());
            }
            Ok(())
        }
    }
}

fn exceeds(name: &str, value: &str, max: &str) -> ErrorReply {
    ErrorReply::bad_request(format!(
        "{name} {value} exceeds this server's maximum of {max}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maxima() -> Maxima {
        let settings = MaximaSettings {
            ttl: Some(Duration::from_secs(600)),
            memory: Some("256Mi".into()),
            storage: Some("1Gi".into()),
            cpu: Some("1500m".into()),
            sandboxes: Some(2),
            images: vec!["a:1".into(), "b:2".into()],
        };
        Maxima::new(settings).unwrap()
    }

    #[test]
    fn settings_beyond_a_maximum_are_refused() {
        let spec = SandboxSpec::new;
        for (spec, says) in [
            (
                spec().ttl(Duration::from_secs(601)),
                "TTL 601 s exceeds this server's maximum of 600 s",
            ),
            (
                spec().memory("900Gi"),
                "memory limit 900Gi exceeds this server's maximum of 256Mi",
            ),
            (
                spec().storage("7Ei"),
                "storage limit 7Ei exceeds this server's maximum of 1Gi",
            ),
            (
                spec().cpu("1501m"),
                "CPU limit 1501m exceeds this server's maximum of 1500m",
            ),
            (spec().memory("much"), "is not a Kubernetes quantity"),
            (
                spec().image("a:2"),
                "image \\\"a:2\\\" is not allowed on this server, only: a:1, b:2",
            ),
        ] {
            let refused = maxima().apply(spec).err().unwrap();
            assert_eq!(refused.status().as_u16(), 400);
            assert!(format!("{refused:?}").contains(says), "{refused:?}");
        }
        let spec = SandboxSpec::new()
            .ttl(Duration::from_secs(600))
            .memory("268435456")
            .cpu("1.5")
            .image("b:2");
        let kept = maxima().apply(spec).ok().unwrap();
        assert_eq!(kept.get_memory(), Some("268435456"));
    }

    #[test]
    fn defaults_are_capped() {
        let spec = maxima().apply(SandboxSpec::new()).ok().unwrap();
        assert_eq!(spec.get_ttl(), Duration::from_secs(600));
        assert_eq!(spec.get_memory(), Some("256Mi"));
        // The default is smaller.
        assert_eq!(spec.get_storage(), None);
        assert_eq!(spec.get_cpu(), Some("1500m"));
        let unlimited = Maxima::new(MaximaSettings::default()).unwrap();
        assert_eq!(
            unlimited.apply(SandboxSpec::new()).ok().unwrap(),
            SandboxSpec::new()
        );
    }

    #[test]
    fn sandboxes_are_counted_until_they_end() {
        let maxima = maxima();
        let id = |text: &str| SessionId::new(text).unwrap();
        assert!(
            maxima
                .begin(&id("a"), Duration::from_secs(60))
                .ok()
                .unwrap()
        );
        assert!(
            maxima
                .begin(&id("b"), Duration::from_secs(60))
                .ok()
                .unwrap()
        );
        // Renewed with another TTL.
        assert!(
            !maxima
                .begin(&id("a"), Duration::from_secs(90))
                .ok()
                .unwrap()
        );
        let refused = maxima
            .begin(&id("c"), Duration::from_secs(60))
            .err()
            .unwrap();
        assert_eq!(refused.status().as_u16(), 429);
        assert!(!maxima.begin(&id("b"), Duration::ZERO).ok().unwrap());
        // It has expired.
        assert!(maxima.begin(&id("c"), Duration::from_secs(60)).is_ok());
        maxima.end(&id("a"));
        assert!(maxima.begin(&id("d"), Duration::from_secs(60)).is_ok());
    }
}
