//! How a rollout moves: sizes of the new and the old replica sets, one step per call.
//!
//! Invariants during a rolling update: the sizes together never exceed `replicas + maxSurge`, and no available pod is
//! given up below `replicas - maxUnavailable`. Follows kubernetes/pkg/controller/deployment {rolling,recreate,sync}.go.

use super::replica_sets::{DESIRED_REPLICAS, MAX_REPLICAS, ReplicaSet};
use super::spec::Deployment;

/// A deployment with its replica sets, being changed.
pub struct Rollout {
    /// The deployment.
    pub deployment: Deployment,
    /// The replica set of the current template.
    pub new: Option<ReplicaSet>,
    /// All others, oldest first.
    pub old: Vec<ReplicaSet>,
}

impl Rollout {
    fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(ReplicaSet::replicas).sum()
    }

    /// Whether the deployment's size changed since its replica sets were sized.
    pub fn is_scaling_event(&self) -> bool {
        self.all().filter(|r| r.replicas() > 0).any(|r| {
            let desired = r.annotation(DESIRED_REPLICAS).and_then(|d| d.parse::<i32>().ok());
            desired.is_some_and(|d| d != self.deployment.replicas)
        })
    }

    /// The size for the new replica set now.
    pub fn new_size(&self) -> i32 {
        let current = self.new.as_ref().map_or(0, ReplicaSet::replicas);
        let wanted = self.deployment.replicas;
        if self.deployment.recreate || current >= wanted {
            return wanted;
        }
        let room = wanted + self.deployment.max_surge() - self.total();
        current + room.clamp(0, wanted - current)
    }

    /// One step of a rolling update.
    pub fn roll(&mut self) {
        let size = self.new_size();
        if let Some(new) = &mut self.new
            && new.replicas() != size
        {
            new.scale(size, &self.deployment);
            return;
        }
        self.shrink_old();
    }

    /// Take replicas from the old sets: first those that are not available anyway, then as many as may be missing.
    fn shrink_old(&mut self) {
        let old: i32 = self.old.iter().map(ReplicaSet::replicas).sum();
        let Some(new) = self.new.as_ref().filter(|n| old > 0 && n.object.is_some()) else {
            return;
        };
        let min_available = self.deployment.min_available();
        let new_unavailable = new.replicas() - new.status("availableReplicas");
        let mut budget = self.total() - min_available - new_unavailable;
        if budget <= 0 {
            return;
        }
        for set in &mut self.old {
            let take = (set.replicas() - set.status("availableReplicas")).min(budget);
            if take > 0 {
                set.scale(set.replicas() - take, &self.deployment);
                budget -= take;
            }
        }
        // A status may still count pods that a smaller size has already given up.
        let available: i32 = self
            .all()
            .map(|r| r.status("availableReplicas").min(r.replicas()))
            .sum();
        let mut spare = (available - min_available).max(0);
        for set in &mut self.old {
            let take = set.replicas().min(spare);
            if take > 0 {
                set.scale(set.replicas() - take, &self.deployment);
                spare -= take;
            }
        }
    }

    /// Recreate: everything old goes first. Returns whether the new replica set may come up.
    pub fn recreate(&mut self, old_pods_running: bool) -> bool {
        let mut scaled_down = false;
        for set in self.old.iter_mut().filter(|r| r.replicas() > 0) {
            set.scale(0, &self.deployment);
            scaled_down = true;
        }
        if scaled_down || old_pods_running {
            return false;
        }
        let wanted = self.deployment.replicas;
        if let Some(new) = &mut self.new
            && new.replicas() != wanted
        {
            new.scale(wanted, &self.deployment);
        }
        true
    }

    /// The deployment was resized, maybe in the middle of a rollout or while paused.
    pub fn resize(&mut self) {
        let deployment = &self.deployment;
        if let Some(only) = active_or_latest(&mut self.new, &mut self.old) {
            only.scale(deployment.replicas, deployment);
        } else if self.new.as_ref().is_some_and(|new| is_saturated(new, deployment)) {
            self.old
                .iter_mut()
                .filter(|r| r.replicas() > 0)
                .for_each(|r| r.scale(0, deployment));
        } else if !deployment.recreate {
            self.resize_proportionally();
        }
    }

    fn resize_proportionally(&mut self) {
        let deployment = &self.deployment;
        let allowed = if deployment.replicas > 0 {
            deployment.replicas + deployment.max_surge()
        } else {
            0
        };
        let mut active = self
            .old
            .iter_mut()
            .chain(&mut self.new)
            .filter(|r| r.replicas() > 0)
            .collect::<Vec<_>>();
        let to_add = allowed - active.iter().map(|r| r.replicas()).sum::<i32>();
        active.sort_by(|a, b| {
            let newer_first = b.meta.creation_timestamp.cmp(&a.meta.creation_timestamp);
            let age = if to_add > 0 { newer_first } else { newer_first.reverse() };
            b.replicas()
                .cmp(&a.replicas())
                .then(age)
                .then_with(|| a.name().cmp(b.name()))
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for set in &active {
            let proportion = proportion(set, deployment, to_add, added);
            added += proportion;
            sizes.push(set.replicas() + proportion);
        }
        if let Some(largest) = sizes.first_mut() {
            *largest = (*largest + to_add - added).max(0);
        }
        for (set, size) in active.into_iter().zip(sizes) {
            set.scale(size, deployment);
        }
    }
}

/// The one replica set that has pods; if none has, the new one or else the latest. `None` if several have.
fn active_or_latest<'a>(new: &'a mut Option<ReplicaSet>, old: &'a mut [ReplicaSet]) -> Option<&'a mut ReplicaSet> {
    let active = old.iter().chain(new.iter()).filter(|r| r.replicas() > 0).count();
    match active {
        0 => new.as_mut().or(old.last_mut()),
        1 => old.iter_mut().chain(new.iter_mut()).find(|r| r.replicas() > 0),
        _ => None,
    }
}

fn is_saturated(new: &ReplicaSet, deployment: &Deployment) -> bool {
    let desired = new.annotation(DESIRED_REPLICAS).and_then(|d| d.parse::<i32>().ok());
    let wanted = deployment.replicas;
    desired == Some(wanted) && new.replicas() == wanted && new.status("availableReplicas") == wanted
}

/// How many of `to_add` (which may be negative) fall to this replica set.
fn proportion(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    let left = to_add - added;
    if set.replicas() == 0 || to_add == 0 || left == 0 {
        return 0;
    }
    let fraction = fraction(set, deployment);
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    if deployment.replicas == 0 {
        return -set.replicas();
    }
    let annotated = set
        .annotation(MAX_REPLICAS)
        .and_then(|m| m.parse::<i32>().ok())
        .filter(|m| *m > 0);
    let before = annotated.or(deployment.status.replicas).filter(|m| *m > 0).unwrap_or(1);
    let size = f64::from(set.replicas()) * f64::from(deployment.replicas + deployment.max_surge()) / f64::from(before);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded by the product of two i32 ratios, saturating"
    )]
    let size = size.round() as i32;
    size - set.replicas()
}
