use super::*;
use proptest::prelude::*;

fn events() -> Vec<(&'static str, Event)> {
    let exited =
        |code| Outcome { reason: Reason::Exited, exit_code: Some(code), signal: None, message: None, oom_kills: 0 };
    vec![
        ("lease", Event::Lease),
        ("prepare", Event::Prepare),
        ("begin", Event::Begin),
        ("pause", Event::Pause),
        ("resume", Event::Resume),
        ("give back, tries left", Event::GiveBack { tries_left: true, why: "w".into() }),
        ("give back, none left", Event::GiveBack { tries_left: false, why: "w".into() }),
        ("lease lost, tries left", Event::LeaseLost { tries_left: true }),
        ("lease lost, none left", Event::LeaseLost { tries_left: false }),
        ("kill", Event::Kill),
        ("start timeout", Event::StartTimeout),
        ("end 0", Event::End(exited(0))),
        ("end 3", Event::End(exited(3))),
        ("end timeout", Event::End(Outcome::because(Reason::Timeout, "t"))),
        ("end killed", Event::End(Outcome::because(Reason::Killed, "k"))),
    ]
}

/// Every pair of state and event, against a table written by hand: `.` already, `-` wrong state, `!` ended.
#[test]
fn every_pair() {
    let table = "
        lease                  | scheduled -         -           -           -           -           !
        prepare                | -         preparing .           -           -           -           !
        begin                  | -         -         running     .           .           -           !
        pause                  | -         -         -           paused      .           -           !
        resume                 | -         -         -           .           running     -           !
        give back, tries left  | -         queued    queued      -           -           killed      !
        give back, none left   | -         failed    failed      -           -           killed      !
        lease lost, tries left | -         queued    queued      lost        lost        killed      !
        lease lost, none left  | -         failed    failed      lost        lost        killed      !
        kill                   | killed    terminating terminating terminating terminating .         !
        start timeout          | failed    -         -           -           -           -           !
        end 0                  | -         succeeded succeeded   succeeded   succeeded   succeeded   !
        end 3                  | -         failed    failed      failed      failed      failed      !
        end timeout            | -         timed_out timed_out   timed_out   timed_out   timed_out   !
        end killed             | -         killed    killed      killed      killed      killed      !";
    let rows: Vec<_> = table.lines().filter(|l| l.contains('|')).collect();
    assert_eq!(rows.len(), events().len());
    for (row, (name, event)) in rows.iter().zip(events()) {
        let (label, cells) = row.split_once('|').unwrap();
        assert_eq!(label.trim(), name);
        let cells: Vec<_> = cells.split_whitespace().collect();
        for (index, state) in State::ALL.into_iter().enumerate() {
            let expected = cells[index.min(6)];
            let got = match step(state, event.clone()) {
                Ok(next) => next.state.as_str(),
                Err(Denied::Already) => ".",
                Err(Denied::WrongState(at)) => {
                    assert_eq!(at, state);
                    "-"
                }
                Err(Denied::Ended) => "!",
            };
            assert_eq!(got, expected, "{name} in {}", state.as_str());
        }
    }
}

#[test]
fn exit_statuses() {
    let o = |reason, exit_code, signal| Outcome { reason, exit_code, signal, message: None, oom_kills: 0 };
    for (outcome, state, status) in [
        (o(Reason::Exited, Some(0), None), State::Succeeded, 0),
        (o(Reason::Exited, Some(7), None), State::Failed, 7),
        (o(Reason::Signalled, None, Some(11)), State::Failed, 139),
        (o(Reason::OutOfMemory, None, Some(9)), State::Failed, 137),
        (o(Reason::CommandNotFound, None, None), State::Failed, 127),
        (o(Reason::CommandNotExecutable, None, None), State::Failed, 126),
        (o(Reason::Timeout, None, Some(9)), State::TimedOut, 124),
        (o(Reason::Ttl, None, None), State::TimedOut, 124),
        (o(Reason::Killed, None, Some(15)), State::Killed, 143),
        (o(Reason::Killed, Some(0), None), State::Killed, 0),
        (o(Reason::Killed, None, None), State::Killed, 137),
        (o(Reason::StartTimeout, None, None), State::Failed, 125),
        (o(Reason::HypervisorDied, None, None), State::Failed, 125),
        (o(Reason::NodeLost, None, None), State::Lost, 125),
    ] {
        assert_eq!((outcome.state(), outcome.exit_status()), (state, status), "{outcome:?}");
    }
}

proptest! {
    /// Whatever happens in whatever order: a command begins at most once, a terminal state is entered at most once and
    /// never left, and the queue entry and the reservation are settled exactly when they must be.
    #[test]
    fn any_history(picks in proptest::collection::vec(0..15usize, 0..40)) {
        let events = events();
        let (mut state, mut begun, mut ended, mut reserved) = (State::Queued, 0, 0, false);
        for pick in picks {
            let Ok(next) = step(state, events[pick].1.clone()) else { continue };
            prop_assert!(!state.is_terminal());
            prop_assert_eq!(next.outcome.is_some(), next.state.is_terminal());
            begun += u32::from(events[pick].1 == Event::Begin);
            if next.state == State::Scheduled {
                reserved = true;
            }
            let has = |e| next.effects.contains(&e);
            prop_assert_eq!(has(Effect::Release), reserved && (next.state.is_terminal() || next.state == State::Queued));
            if has(Effect::Release) {
                reserved = false;
            }
            prop_assert_eq!(has(Effect::Requeue), next.state == State::Queued);
            prop_assert_eq!(has(Effect::Ack) ^ has(Effect::DeadLetter), next.state.is_terminal());
            ended += u32::from(next.state.is_terminal());
            state = next.state;
        }
        prop_assert!(begun <= 1 && ended <= 1);
    }
}
