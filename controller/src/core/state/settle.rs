//! What a batch came to: collected, numbered once it is durable, then put where
//! hosts find it.

use super::*;

impl State {
    /// Collects what the batch decided.
    pub fn settle(&mut self, now: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        let (mut rewatch, mut retask, mut reprobe) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for id in std::mem::take(&mut self.touched) {
            let Some(entry) = self.rollouts.get_mut(&id) else { continue };
            while let Some(action) = entry.rollout.poll_action() {
                match action {
                    Action::Append(record) => {
                        if let Some((host, component, generation)) = minted(&record) {
                            self.registry.owned(host, component, generation, &id);
                        }
                        outcome.notices.extend(entry.notices.apply(entry.rollout.plan(), now, &record));
                        outcome.records.push(NewRecord { rollout: id.clone(), at: now, record });
                        self.refetch.insert(id.clone());
                    }
                    Action::Send(host, assignment) => outcome.sends.push((host, Word::Assign(assignment))),
                    Action::SendSide(host, side) => outcome.sends.push((host, Word::Side(side))),
                    Action::SendSwitch(host, order) => outcome.sends.push((host, Word::Switch(order))),
                    Action::Watch(host) => {
                        rewatch.insert(host);
                    }
                    Action::Tasks(host) => {
                        retask.insert(host);
                    }
                    Action::Outages(host) => {
                        reprobe.insert(host);
                    }
                }
            }
            if entry.rollout.is_live() {
                self.live.insert(id);
            } else if self.live.remove(&id) {
                // It may be the one that others wait for.
                self.changed = true;
            }
        }
        for host in std::mem::take(&mut self.batch.hellos) {
            outcome.sends.extend(self.standing(&host).into_iter().map(|word| (host.clone(), word)));
            rewatch.insert(host.clone());
            retask.insert(host.clone());
            reprobe.insert(host);
        }
        // Who is not in contact hears it at its hello.
        let there = |host: &HostName| self.registry.get(host).is_some_and(|h| h.session().is_some());
        outcome.sends.extend(rewatch.into_iter().filter(there).map(|host| (host.clone(), Word::Watch(self.watches(&host)))));
        outcome.sends.extend(retask.into_iter().filter(there).map(|host| (host.clone(), Word::Tasks(self.task_orders(&host)))));
        outcome.sends.extend(reprobe.into_iter().filter(there).map(|host| (host.clone(), Word::Outages(self.probed(&host)))));
        outcome.fetches = self.fetches();
        outcome.to_check = self.checks_wanted();
        outcome.fleet = std::mem::take(&mut self.batch.fleet);
        outcome.changes = std::mem::take(&mut self.batch.changes);
        outcome.replies = std::mem::take(&mut self.batch.replies);
        outcome
    }

    /// All that a host is to hear at its hello: of each component the newest word.
    fn standing(&self, host: &HostName) -> Vec<Word> {
        let Some(known) = self.registry.get(host) else { return Vec::new() };
        // A host that says itself how this generation ended need not hear of it.
        let ended = |component: &ComponentName, generation: Generation| {
            known.components().find(|c| &c.component == component).is_some_and(|c| c.generation == generation && c.progress.is_final())
        };
        let mut words = Vec::new();
        for (component, (_, id)) in &known.owners {
            let Some(rollout) = self.rollouts.get(id).map(|e| &e.rollout) else { continue };
            let assignment = rollout.assignments(host).into_iter().find(|a| &a.component == component);
            words.extend(assignment.filter(|a| !ended(component, a.generation)).map(Word::Assign));
            words.extend(rollout.sides(host).into_iter().filter(|s| &s.assignment.component == component).map(Word::Side));
            words.extend(rollout.switches(host).into_iter().filter(|s| &s.component == component).map(Word::Switch));
        }
        words.extend(self.heads.word());
        words
    }

    /// Everything that shall be measured on a host, of all live rollouts.
    fn watches(&self, host: &HostName) -> Vec<Watch> {
        self.alive().flat_map(|(_, e)| e.rollout.watches(host)).collect()
    }

    /// Every task of a host, of all live rollouts.
    fn task_orders(&self, host: &HostName) -> Vec<TaskOrder> {
        self.alive().flat_map(|(_, e)| e.rollout.task_orders(host)).collect()
    }

    /// Components whose outages shall be observed on a host, for all live rollouts.
    fn probed(&self, host: &HostName) -> Vec<ComponentName> {
        let all: BTreeSet<ComponentName> = self.alive().flat_map(|(_, e)| e.rollout.outage_watches(host)).collect();
        all.into_iter().collect()
    }

    /// All that is to be fetched, if it changed.
    fn fetches(&mut self) -> Option<Vec<Wanted>> {
        let mut changed = false;
        for id in std::mem::take(&mut self.refetch) {
            let Some(entry) = self.rollouts.get_mut(&id) else { continue };
            let now = if entry.rollout.is_live() && entry.asks_sources() { entry.rollout.fetches() } else { Vec::new() };
            changed |= now != entry.fetches;
            entry.fetches = now;
        }
        let all = || {
            let of = |(id, e): (&RolloutId, &Entry)| -> Vec<Wanted> {
                e.fetches.iter().map(|f| Wanted { rollout: id.clone(), fetch: f.clone() }).collect()
            };
            self.rollouts.iter().filter(|(_, e)| !e.fetches.is_empty()).flat_map(of).collect()
        };
        changed.then(all)
    }

    /// Numbers what was appended: the first record's rollout is the first of `rollouts`.
    pub fn appended(&mut self, appended: Appended, rollouts: &[RolloutId]) {
        self.heads.appended(appended.head);
        let mut span: BTreeMap<&RolloutId, (u64, u64)> = BTreeMap::new();
        for (id, seq) in rollouts.iter().zip(appended.first..) {
            span.entry(id).or_insert((seq, seq)).1 = seq;
        }
        for (id, (oldest, seq)) in span {
            let Some(entry) = self.rollouts.get_mut(id) else { continue };
            if entry.first_seq == 0 {
                entry.first_seq = oldest;
            }
            entry.ticks.send_replace(Tick { seq, state: entry.rollout.state() });
        }
    }

    /// Puts words where connected hosts find them; the others hear at their hello.
    pub fn send(&self, sends: Vec<(HostName, Word)>) {
        for (host, word) in sends {
            if let Some(session) = self.registry.get(&host).and_then(|h| h.session()) {
                session.outbox.put(word);
            }
        }
    }
}

/// The generation that a record uses up.
fn minted(record: &Record) -> Option<(&HostName, &ComponentName, Generation)> {
    match record {
        Record::Ordered { host, component, generation, .. }
        | Record::Switch { host, component, generation, .. }
        | Record::Retired { host, component, generation, .. } => Some((host, component, *generation)),
        _ => None,
    }
}
