use super::*;
use std::collections::VecDeque;

use highwater_protocol::ids::{PartitionId, TopicId};

use crate::error::ErrorKind;
use crate::retry::Random;

const TIMING: Timing = Timing {
    session: Duration::from_secs(10),
    rebalance: Duration::from_secs(40),
    poll_max: Duration::from_secs(300),
    commit: Some(Duration::from_secs(5)),
};
const INTERVAL: Duration = Duration::from_millis(2900);

fn p(partition: u32) -> TopicPartition {
    TopicPartition::new(TopicId(1), PartitionId(partition))
}

fn set(partitions: &[u32]) -> BTreeSet<TopicPartition> {
    partitions.iter().map(|partition| p(*partition)).collect()
}

fn list(partitions: &[u32]) -> Vec<TopicPartition> {
    set(partitions).into_iter().collect()
}

/// A member, what it has put out, and the time.
struct Run {
    member: Member,
    now: Instant,
    out: VecDeque<Output>,
}

impl Run {
    fn new(timing: Timing) -> Self {
        let now = Instant::now();
        let mut run = Self { member: Member::new(timing, now), now, out: VecDeque::new() };
        run.step(None);
        run
    }

    /// A member that has been given these partitions and reads them.
    fn with(timing: Timing, partitions: &[u32]) -> Self {
        let mut run = Self::new(timing);
        let joining = run.heartbeat();
        assert_eq!((joining.generation, joining.action, joining.new_id), (0, Action::Alive, true));
        assert!(joining.in_full);
        run.answer(1, Some(partitions));
        if !partitions.is_empty() {
            let ticket = run.search(partitions);
            run.input(Input::Adopted(ticket, list(partitions)));
        }
        run
    }

    fn step(&mut self, input: Option<Input>) {
        let mut out = Vec::new();
        self.member.step(self.now, input, &mut out);
        self.out.extend(out);
        if let Some(deadline) = self.member.next_deadline() {
            assert!(
                deadline > self.now,
                "a deadline that a step leaves over is met again at once: {:?}",
                self.member
            );
        }
    }

    fn input(&mut self, input: Input) {
        self.step(Some(input));
    }

    fn answer(&mut self, generation: u32, assignment: Option<&[u32]>) {
        self.input(Input::Answered(Answer {
            generation,
            interval: INTERVAL,
            assignment: assignment.map(set),
        }));
    }

    /// Lets time pass, up to the next deadline.
    fn wait(&mut self) -> Duration {
        let deadline = self.member.next_deadline().unwrap();
        let waited = deadline - self.now;
        self.now = deadline;
        self.step(None);
        waited
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.step(None);
    }

    fn next(&mut self) -> Output {
        self.out.pop_front().expect("an output")
    }

    fn heartbeat(&mut self) -> Heartbeat {
        match self.next() {
            Output::Heartbeat(heartbeat) => heartbeat,
            other => panic!("{other:?}"),
        }
    }

    fn search(&mut self, partitions: &[u32]) -> Ticket {
        match self.next() {
            Output::Find(ticket, found) => {
                assert_eq!(found, list(partitions));
                assert_eq!(self.member.looked_for(ticket), found);
                ticket
            }
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self) {
        assert!(matches!(self.next(), Output::Commit));
    }

    fn nothing(&self) {
        assert!(self.out.is_empty(), "{:?}", self.out);
    }
}

#[test]
fn a_moved_partition_is_let_go_committed_reported_and_the_others_are_not_touched() {
    let mut run = Run::with(TIMING, &[0, 1, 2]);
    run.wait();
    let beat = run.heartbeat();
    assert_eq!((beat.generation, beat.owned), (1, Some(set(&[0, 1, 2]))), "what was taken on is told");
    run.answer(2, Some(&[0, 2]));
    assert!(matches!(run.next(), Output::Revoke(revoked) if revoked == list(&[1])));
    run.nothing();
    run.input(Input::Released(list(&[1])));
    run.commit();
    run.nothing();
    run.input(Input::Committed);
    let beat = run.heartbeat();
    assert_eq!((beat.generation, beat.action, beat.owned), (2, Action::Alive, Some(set(&[0, 2]))));
    assert!(beat.in_full && !beat.new_id, "the first one after a new assignment");
    run.answer(2, None);
    run.nothing();
    run.wait();
    let beat = run.heartbeat();
    assert!(!beat.in_full && beat.owned.is_none());
}

#[test]
fn what_does_not_change_is_not_said_again() {
    let mut run = Run::with(TIMING, &[0]);
    run.wait();
    assert_eq!(run.heartbeat().owned, Some(set(&[0])));
    run.answer(1, None);
    assert_eq!(run.wait(), TIMING.commit.unwrap() - INTERVAL);
    run.commit();
    run.input(Input::Committed);
    run.wait();
    assert_eq!(run.heartbeat().owned, None);
}

#[test]
fn after_a_lost_answer_everything_is_said_again_in_the_same_generation() {
    let mut run = Run::with(TIMING, &[0]);
    run.wait();
    run.heartbeat();
    run.input(Input::Failed(Failure::Lost(0)));
    run.nothing();
    assert!(run.wait() < Duration::from_millis(100));
    let beat = run.heartbeat();
    assert_eq!((beat.generation, beat.in_full, beat.owned), (1, true, Some(set(&[0]))));
    assert!(!beat.new_id);
}

#[test]
fn the_lease_counts_from_the_sending_of_the_last_answered_heartbeat() {
    let mut run = Run::with(TIMING, &[0]);
    let joined = run.now;
    assert_eq!(run.member.lease_until(), Some(joined + TIMING.session));
    run.wait();
    let sent = run.now;
    run.heartbeat();
    run.pass(Duration::from_secs(1));
    assert_eq!(run.member.lease_until(), Some(joined + TIMING.session));
    run.answer(1, None);
    assert_eq!(run.member.lease_until(), Some(sent + TIMING.session));
    run.wait();
    run.out.clear();
    run.input(Input::Failed(Failure::Lost(0)));
    assert_eq!(run.member.lease_until(), Some(sent + TIMING.session));
}

#[test]
fn a_partition_that_comes_back_while_it_is_given_up_is_taken_on_anew() {
    let mut run = Run::with(TIMING, &[0, 1]);
    run.wait();
    run.heartbeat();
    run.answer(2, Some(&[0]));
    run.next();
    run.wait();
    run.commit();
    run.input(Input::Committed);
    assert!(run.wait() < INTERVAL);
    run.heartbeat();
    run.answer(3, Some(&[0, 1]));
    run.nothing();
    run.input(Input::Released(list(&[1])));
    run.commit();
    run.input(Input::Committed);
    assert_eq!(run.heartbeat().owned, Some(set(&[0])));
    run.answer(3, None);
    // The coordinator still says that it is ours.
    run.search(&[1]);
}

#[test]
fn a_search_whose_partition_went_and_came_back_counts_for_nothing() {
    let mut run = Run::with(TIMING, &[0]);
    run.wait();
    run.heartbeat();
    run.answer(2, Some(&[0, 1]));
    let first = run.search(&[1]);
    run.wait();
    run.commit();
    run.input(Input::Committed);
    run.wait();
    run.heartbeat();
    run.answer(3, Some(&[0]));
    // It was never read: there is nothing to commit, and the coordinator is told at once.
    assert_eq!(run.heartbeat().owned, Some(set(&[0])));
    run.answer(4, Some(&[0, 1]));
    let second = run.search(&[1]);
    assert!(first != second && run.member.looked_for(first).is_empty());
    run.input(Input::Adopted(first, list(&[1])));
    assert_eq!(run.member.looked_for(second), list(&[1]), "somebody else may have committed since");
    run.input(Input::Adopted(second, list(&[1])));
    assert!(run.member.looked_for(second).is_empty());
}

#[test]
fn what_was_not_found_is_looked_for_again_and_holds_up_nothing() {
    let mut run = Run::new(TIMING);
    run.heartbeat();
    run.answer(1, Some(&[0, 1]));
    let ticket = run.search(&[0, 1]);
    run.input(Input::Adopted(ticket, list(&[0])));
    run.input(Input::Searched(ticket));
    run.nothing();
    assert_eq!(run.wait(), FIND_AGAIN);
    run.search(&[1]);
}

#[test]
fn an_application_that_does_not_let_go_in_time_is_not_waited_for() {
    let mut run = Run::with(TIMING, &[0, 1]);
    run.wait();
    run.heartbeat();
    run.answer(2, Some(&[0]));
    run.next();
    let begun = run.now;
    let taken = loop {
        match run.out.pop_front() {
            Some(Output::TakeAway(taken)) => break taken,
            Some(Output::Commit) => run.input(Input::Committed),
            Some(Output::Heartbeat(_)) => run.answer(2, None),
            Some(other) => panic!("{other:?}"),
            None => drop(run.wait()),
        }
    };
    assert_eq!((taken, run.now - begun), (list(&[1]), TIMING.rebalance * 3 / 4));
    run.commit();
    run.input(Input::Committed);
    assert_eq!(run.heartbeat().owned, Some(set(&[0])));
    // It comes round at last.
    run.input(Input::Released(list(&[1])));
    run.nothing();
}

#[test]
fn a_commit_that_fails_is_tried_again_and_given_up_before_everything_is_lost() {
    let mut run = Run::with(TIMING, &[0, 1]);
    run.wait();
    run.heartbeat();
    run.answer(2, Some(&[0]));
    run.next();
    run.input(Input::Released(list(&[1])));
    let begun = run.now;
    let mut tries = 0;
    let reported = loop {
        match run.out.pop_front() {
            Some(Output::Commit) => {
                tries += 1;
                run.input(Input::CommitFailed(0));
            }
            Some(Output::Heartbeat(beat)) if beat.owned == Some(set(&[0])) => break run.now,
            Some(Output::Heartbeat(_)) => run.answer(2, None),
            Some(other) => panic!("{other:?}"),
            None => drop(run.wait()),
        }
    };
    assert_eq!(reported - begun, TIMING.rebalance);
    assert!(tries > 10, "{tries} tries");
}

#[test]
fn only_a_commit_that_began_after_the_release_counts_for_it() {
    let mut run = Run::with(TIMING, &[0, 1]);
    run.input(Input::CommitWanted);
    run.commit();
    run.wait();
    run.heartbeat();
    run.answer(2, Some(&[0]));
    run.next();
    run.input(Input::Released(list(&[1])));
    run.nothing();
    run.input(Input::Committed);
    run.commit();
    run.nothing();
    run.input(Input::Committed);
    assert_eq!(run.heartbeat().owned, Some(set(&[0])));
}

#[test]
fn a_member_that_is_fenced_owns_nothing_and_joins_at_once_under_another_id() {
    let mut run = Run::with(TIMING, &[0, 1]);
    run.wait();
    run.heartbeat();
    run.input(Input::Failed(Failure::Fenced));
    assert!(matches!(run.next(), Output::Lose(lost, Reason::Fenced) if lost == list(&[0, 1])));
    let joining = run.heartbeat();
    assert_eq!((joining.generation, joining.new_id, joining.owned), (0, true, Some(set(&[]))));
    assert_eq!((run.member.lease_until(), run.member.generation()), (None, None));
    // Not without end, if that is refused likewise.
    run.input(Input::Failed(Failure::Fenced));
    run.nothing();
    assert!(run.wait() >= Duration::from_secs(1));
    assert!(run.heartbeat().new_id);
    run.answer(7, Some(&[1]));
    run.search(&[1]);
}

#[test]
fn finished_records_are_committed_by_themselves_unless_the_application_does_it() {
    let mut run = Run::with(TIMING, &[]);
    let mut commits = 0;
    let begun = run.now;
    while run.now <= begun + Duration::from_secs(60) {
        match run.out.pop_front() {
            Some(Output::Commit) => {
                commits += 1;
                run.input(Input::Committed);
            }
            Some(Output::Heartbeat(_)) => run.answer(1, None),
            Some(other) => panic!("{other:?}"),
            None => drop(run.wait()),
        }
    }
    assert_eq!(commits, 12);
    let mut run = Run::with(Timing { commit: None, ..TIMING }, &[0, 1]);
    run.wait();
    run.heartbeat();
    run.input(Input::CommitWanted);
    run.commit();
    run.answer(2, Some(&[0]));
    run.next();
    run.input(Input::Released(list(&[1])));
    run.nothing();
    run.input(Input::Committed);
    assert_eq!(run.heartbeat().owned, Some(set(&[0])), "nothing more is committed for it");
}

#[test]
fn an_application_that_is_away_for_too_long_leaves_and_joins_again_when_it_is_back() {
    let mut run = Run::with(TIMING, &[0]);
    let away = run.now;
    run.input(Input::Application { away_since: Some(away) });
    let lost = loop {
        match run.out.pop_front() {
            Some(Output::Commit) => run.input(Input::Committed),
            Some(Output::Heartbeat(_)) => run.answer(1, None),
            Some(Output::Lose(lost, reason)) => {
                assert_eq!(reason, Reason::Away);
                break lost;
            }
            Some(other) => panic!("{other:?}"),
            None => drop(run.wait()),
        }
        run.input(Input::Application { away_since: Some(away) });
    };
    assert_eq!((lost, run.now - away), (list(&[0]), TIMING.poll_max));
    run.commit();
    run.input(Input::Committed);
    let beat = run.heartbeat();
    assert_eq!((beat.action, beat.owned), (Action::Leave, Some(set(&[]))));
    run.answer(0, None);
    run.nothing();
    assert_eq!(run.member.next_deadline(), None, "nothing until the application is back");
    run.input(Input::Application { away_since: Some(away) });
    run.nothing();
    run.input(Input::Application { away_since: None });
    let joining = run.heartbeat();
    assert_eq!((joining.generation, joining.new_id), (0, true));
}

#[test]
fn closing_commits_and_leaves() {
    for (for_restart, action) in [(false, Action::Leave), (true, Action::LeaveForRestart)] {
        let mut run = Run::with(TIMING, &[0, 1]);
        run.input(Input::Close { for_restart });
        assert!(matches!(run.next(), Output::TakeAway(all) if all == list(&[0, 1])));
        run.commit();
        run.nothing();
        run.input(Input::Committed);
        assert_eq!(run.heartbeat().action, action);
        run.answer(0, None);
        assert!(matches!(run.next(), Output::Ended(None)));
        assert_eq!(run.member.next_deadline(), None);
    }
}

#[test]
fn closing_while_joining_leaves_what_was_joined() {
    let mut run = Run::new(TIMING);
    run.heartbeat();
    run.input(Input::Close { for_restart: false });
    run.nothing();
    run.answer(5, Some(&[0]));
    let beat = run.heartbeat();
    assert_eq!((beat.generation, beat.action), (5, Action::Leave));
    run.answer(0, None);
    assert!(matches!(run.next(), Output::Ended(None)));
    // Nobody knows it: there is nothing to leave.
    let mut run = Run::new(TIMING);
    run.heartbeat();
    run.input(Input::Close { for_restart: false });
    run.input(Input::Failed(Failure::Lost(0)));
    assert!(matches!(run.next(), Output::Ended(None)));
}

#[test]
fn leaving_does_not_wait_without_end() {
    let mut run = Run::with(TIMING, &[0]);
    run.input(Input::Close { for_restart: false });
    let begun = run.now;
    run.next();
    loop {
        match run.out.pop_front() {
            Some(Output::Commit) => run.input(Input::CommitFailed(0)),
            Some(Output::Heartbeat(_)) => run.input(Input::Failed(Failure::Lost(0))),
            Some(Output::Ended(error)) => break assert!(error.is_none()),
            Some(other) => panic!("{other:?}"),
            None => drop(run.wait()),
        }
    }
    assert!(run.now - begun <= TIMING.rebalance + Duration::from_secs(1));
}

#[test]
fn an_instance_id_in_use_is_asked_for_again_for_a_session_and_is_the_end_of_a_member() {
    let error = || Error::new(ErrorKind::Conflict, "in use");
    let mut run = Run::new(TIMING);
    let begun = run.now;
    let end = loop {
        match run.out.pop_front() {
            Some(Output::Heartbeat(_)) => run.input(Input::Failed(Failure::InstanceInUse(error()))),
            Some(Output::Ended(end)) => break end,
            Some(other) => panic!("{other:?}"),
            None => drop(run.wait()),
        }
    };
    assert_eq!(end.unwrap().kind(), ErrorKind::Conflict);
    assert_eq!(run.now - begun, TIMING.session);
    let mut run = Run::with(TIMING, &[0]);
    run.wait();
    run.heartbeat();
    run.input(Input::Failed(Failure::InstanceInUse(error())));
    assert!(matches!(run.next(), Output::Lose(_, Reason::Over)));
    assert!(matches!(run.next(), Output::Ended(Some(_))));
}

/// Everything that can happen, in any order: the invariants hold, no deadline is left over, every question has one
/// answer, and in the end it can be closed.
#[test]
fn whatever_happens_it_stays_consistent() {
    for seed in 0..3000 {
        let random = Random::seeded(seed);
        let below = |count: u64| random.next_u64() % count;
        let mut run = Run::new(TIMING);
        let (mut beating, mut committing, mut generation) = (false, false, 1);
        let mut tickets = Vec::new();
        let mut closed = false;
        for _ in 0..200 {
            while let Some(output) = run.out.pop_front() {
                match output {
                    Output::Heartbeat(_) => assert!(!std::mem::replace(&mut beating, true), "seed {seed}"),
                    Output::Commit => assert!(!std::mem::replace(&mut committing, true), "seed {seed}"),
                    Output::Find(ticket, _) => tickets.push(ticket),
                    Output::Ended(_) => assert!(closed, "seed {seed}"),
                    _ => {}
                }
            }
            let some = || (0..6u32).filter(|_| below(2) == 0).collect::<Vec<_>>();
            match below(12) {
                0..=2 if beating => {
                    beating = false;
                    generation += u32::from(below(2) == 0);
                    let assignment = some();
                    run.answer(generation, (below(2) == 0).then_some(&assignment));
                }
                3 if beating => {
                    beating = false;
                    let failure = if below(4) == 0 { Failure::Fenced } else { Failure::Lost(below(1 << 30)) };
                    run.input(Input::Failed(failure));
                }
                4 | 5 if !tickets.is_empty() => {
                    let ticket = tickets.swap_remove(below(tickets.len() as u64) as usize);
                    run.input(Input::Adopted(ticket, list(&some())));
                    run.input(Input::Searched(ticket));
                }
                6 => run.input(Input::Released(list(&some()))),
                7 if committing => {
                    committing = false;
                    let failed = below(3) == 0;
                    run.input(if failed { Input::CommitFailed(below(1 << 30)) } else { Input::Committed });
                }
                8 => run.input(Input::CommitWanted),
                9 => {
                    let away_since = (below(3) == 0).then_some(run.now);
                    run.input(Input::Application { away_since });
                }
                10 => run.pass(Duration::from_millis(below(20_000))),
                11 if below(40) == 0 => {
                    closed = true;
                    run.input(Input::Close { for_restart: below(2) == 0 });
                }
                _ if run.member.next_deadline().is_some() => drop(run.wait()),
                _ => {}
            }
        }
    }
}
