use super::*;
use proptest::prelude::*;
use tidegate_rollout::process::ContactRole;

fn at(text: &str) -> Timestamp {
    stamp(text.parse::<Instant>().unwrap()).unwrap()
}

fn show(at: Timestamp) -> String {
    Instant::from_millisecond(i64::try_from(at.0).unwrap()).unwrap().to_string()
}

fn window(days: &[Day], start: &str, minutes: u32, zone: &str) -> WindowSpec {
    WindowSpec {
        days: days.to_vec(),
        start_time: (!start.is_empty()).then(|| start.parse().unwrap()),
        length_minutes: (minutes > 0).then_some(minutes),
        time_zone: (!zone.is_empty()).then(|| zone.to_owned()),
        fit: None,
        overrun: false,
    }
}

fn contact(hours: &str, zone: Option<&str>) -> ContactSpec {
    ContactSpec {
        role: ContactRole::OnCall,
        name: "Kim".into(),
        phone: "1".into(),
        available: hours.parse().unwrap(),
        time_zone: zone.map(str::to_owned),
    }
}

/// The first opening after an instant: from, to.
fn first(window: WindowSpec, from: &str) -> (String, String, String) {
    let found = openings(&[window], at(from), 1);
    let opening = found.first().expect("an opening");
    (show(opening.opens), show(opening.closes), opening.text.clone())
}

#[test]
fn a_window_over_midnight_opens_in_its_zone() {
    let (opens, closes, text) = first(window(&[Day::Tue], "22:00", 360, "Europe/Berlin"), "2026-11-20T00:00:00Z");
    assert_eq!((opens.as_str(), closes.as_str()), ("2026-11-24T21:00:00Z", "2026-11-25T03:00:00Z"));
    assert_eq!(text, "Tue 2026-11-24 22:00 CET – Wed 2026-11-25 04:00 CET (Europe/Berlin); 2026-11-24 21:00 UTC – 2026-11-25 03:00 UTC");
    // The one that is open is the first.
    let (opens, ..) = first(window(&[Day::Tue], "22:00", 360, "Europe/Berlin"), "2026-11-25T02:59:59Z");
    assert_eq!(opens, "2026-11-24T21:00:00Z");
    let (opens, ..) = first(window(&[Day::Tue], "22:00", 360, "Europe/Berlin"), "2026-11-25T03:00:00Z");
    assert_eq!(opens, "2026-12-01T21:00:00Z");
    let (.., text) = first(window(&[], "22:00", 60, ""), "2026-11-20T00:00:00Z");
    assert_eq!(text, "Fri 2026-11-20 22:00 UTC – Fri 2026-11-20 23:00 UTC");
}

#[test]
fn a_start_that_the_clock_jumps_over_opens_when_the_jump_is_over() {
    for (zone, day, start, from, opens, note) in [
        (
            "Europe/Berlin",
            Day::Sun,
            "02:30",
            "2026-03-28T00:00:00Z",
            "2026-03-29T01:00:00Z",
            "Sun 2026-03-29 02:30 CET does not exist: opens 03:00 CEST",
        ),
        // Midnight itself is jumped over.
        ("America/Santiago", Day::Sun, "00:15", "2026-09-05T12:00:00Z", "2026-09-06T04:00:00Z", "does not exist: opens 01:00"),
        // By half an hour.
        ("Australia/Lord_Howe", Day::Sun, "02:10", "2026-10-03T00:00:00Z", "2026-10-03T15:30:00Z", "does not exist: opens 02:30"),
        // A whole day.
        ("Pacific/Apia", Day::Fri, "10:00", "2011-12-29T12:00:00Z", "2011-12-30T10:00:00Z", "does not exist: opens 00:00"),
    ] {
        let (found, closes, text) = first(window(&[day], start, 60, zone), from);
        assert_eq!(found, opens, "{zone}");
        assert_eq!(at(&closes).since(at(&found)), tidegate_protocol::Millis::from_secs(3_600), "{zone}: the length really passes");
        assert!(text.contains(note), "{zone}: {text}");
    }
}

#[test]
fn a_start_that_comes_twice_opens_at_the_first() {
    for (zone, start, from, opens) in [
        ("Europe/Berlin", "02:30", "2026-10-24T00:00:00Z", "2026-10-25T00:30:00Z"),
        ("Australia/Lord_Howe", "01:40", "2026-04-03T20:00:00Z", "2026-04-04T14:40:00Z"),
    ] {
        let (found, _, text) = first(window(&[Day::Sun], start, 60, zone), from);
        assert_eq!(found, opens, "{zone}");
        assert!(text.contains("comes twice: opens at the first"), "{zone}: {text}");
    }
    // It stays open for what really passes: the clock shows an hour less.
    let (opens, closes, text) = first(window(&[Day::Sat], "22:00", 360, "Europe/Berlin"), "2026-10-24T00:00:00Z");
    assert_eq!((opens.as_str(), closes.as_str()), ("2026-10-24T20:00:00Z", "2026-10-25T02:00:00Z"));
    assert!(text.contains("22:00 CEST – Sun 2026-10-25 03:00 CET") && text.ends_with("the clock changes meanwhile: 6h00 pass"), "{text}");
}

#[test]
fn days_without_hours_are_whole_days() {
    let (opens, closes, _) = first(window(&[Day::Sun], "", 0, "Europe/Berlin"), "2026-03-23T00:00:00Z");
    assert_eq!((opens.as_str(), closes.as_str()), ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), "a day of 23 hours");
    // Tue and Wed touch: one opening.
    let (opens, closes, _) = first(window(&[Day::Tue, Day::Wed], "", 0, ""), "2026-11-20T00:00:00Z");
    assert_eq!((opens.as_str(), closes.as_str()), ("2026-11-24T00:00:00Z", "2026-11-26T00:00:00Z"));
    // The day that Samoa skipped is none.
    let found = openings(&[window(&[Day::Fri], "", 0, "Pacific/Apia")], at("2011-12-29T00:00:00Z"), 1);
    assert_eq!(found.first().map(|o| show(o.opens)).unwrap(), "2012-01-05T10:00:00Z");
}

#[test]
fn without_days_and_hours_it_is_always_open() {
    let now = at("2026-11-20T00:00:00Z");
    let later = at("2027-11-20T00:00:00Z");
    for windows in [
        vec![window(&[], "", 0, "Europe/Berlin")],
        vec![window(Day::ALL, "", 0, "")],
        vec![window(&[Day::Mon], "00:00", 10_080, "")],
        vec![window(&[], "00:00", 720, ""), window(&[], "12:00", 720, "")],
    ] {
        let found = openings(&windows, now, 3);
        assert_eq!(found.len(), 1, "{windows:?}: {found:?}");
        assert_eq!(found.first().map(|o| (o.opens, o.text.as_str())), Some((Timestamp(0), "always open")), "{windows:?}");
        assert_eq!(found, openings(&windows, later, 3), "what is said of it does not change");
    }
    assert_eq!(openings(&[], now, 3), []);
}

#[test]
fn windows_that_touch_are_one_and_as_strict_as_the_strictest() {
    let mut early = window(&[Day::Tue], "20:00", 120, "");
    let mut late = window(&[Day::Tue], "21:00", 180, "");
    (early.fit, late.overrun) = (Some(Fit::Stage), true);
    let found = openings(&[late.clone(), early.clone()], at("2026-11-23T00:00:00Z"), 2);
    let opening = found.first().unwrap();
    assert_eq!((show(opening.opens).as_str(), show(opening.closes).as_str()), ("2026-11-24T20:00:00Z", "2026-11-25T00:00:00Z"));
    assert_eq!((opening.fit, opening.overrun), (Fit::All, true));
    late.fit = Some(Fit::Stage);
    assert_eq!(openings(&[late, early], at("2026-11-23T00:00:00Z"), 1).first().unwrap().fit, Fit::Stage);
}

#[test]
fn a_zone_that_is_none_is_named_with_what_may_be_meant() {
    for (zone, near) in [("Europe/Berlln", "Europe/Berlin"), ("berlin", "Europe/Berlin"), ("Pacific/Apja", "Pacific/Apia")] {
        let message = check(&[window(&[], "22:00", 60, zone)], &[]).unwrap_err();
        assert!(message.starts_with("window.time_zone: ") && message.contains(zone) && message.contains(near), "{message}");
    }
    let message = check(&[], &[contact("always", Some("Mars/Olympus"))]).unwrap_err();
    assert!(message.starts_with("contact.time_zone: ") && message.contains("for example"), "{message}");
    check(&[window(&[], "22:00", 60, "Europe/Berlin")], &[contact("always", None)]).unwrap();
}

#[test]
fn hours_cover_every_minute_or_say_which_they_do_not() {
    let berlin = Some("Europe/Berlin");
    let night = contact("22:00-06:00", berlin);
    contacts_cover(&night, None, at("2026-11-24T21:00:00Z"), at("2026-11-25T05:00:00Z")).unwrap();
    let gap = contacts_cover(&night, None, at("2026-11-24T21:00:00Z"), at("2026-11-25T05:00:01Z")).unwrap_err();
    assert!(gap.contains("Kim") && gap.contains("Wed 2026-11-25 06:00 CET"), "{gap}");
    contacts_cover(&night, None, at("2026-11-24T20:59:00Z"), at("2026-11-24T21:30:00Z")).unwrap_err();
    // The night on which the clock goes back has an hour more, the other one less.
    contacts_cover(&night, None, at("2026-10-24T20:00:00Z"), at("2026-10-25T05:00:00Z")).unwrap();
    contacts_cover(&night, None, at("2026-03-28T21:00:00Z"), at("2026-03-29T04:00:00Z")).unwrap();
    contacts_cover(&night, None, at("2026-03-28T21:00:00Z"), at("2026-03-29T05:00:00Z")).unwrap_err();
    // Its own zone before the default one; UTC without either.
    contacts_cover(&contact("21:00-22:00", None), None, at("2026-11-24T21:00:00Z"), at("2026-11-24T22:00:00Z")).unwrap();
    contacts_cover(&contact("22:00-23:00", None), berlin, at("2026-11-24T21:00:00Z"), at("2026-11-24T22:00:00Z")).unwrap();
    contacts_cover(&contact("always", None), None, at("2026-01-01T00:00:00Z"), at("2026-12-31T00:00:00Z")).unwrap();
    // Two who stand in for each other.
    let (day, rest) = (contact("06:00-22:00", berlin), contact("22:00-06:00", berlin));
    cover(&[&day, &rest], None, at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z")).unwrap();
    cover(&[], None, at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z")).unwrap_err();
}

const ZONES: &[&str] = &["Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Pacific/Apia", "UTC", "Asia/Kathmandu"];

fn any_window() -> impl Strategy<Value = WindowSpec> {
    (proptest::collection::vec(0..7_usize, 0..4), 0..1_440_u16, 1..10_081_u32, 0..ZONES.len(), any::<bool>()).prop_map(
        |(days, start, minutes, zone, whole)| WindowSpec {
            days: days.into_iter().filter_map(|d| Day::ALL.get(d).copied()).collect(),
            start_time: (!whole).then_some(ClockTime(start)),
            length_minutes: (!whole).then_some(minutes),
            time_zone: ZONES.get(zone).map(|z| (*z).to_owned()),
            fit: None,
            overrun: false,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// 2010 to 2030: with the day that Samoa skipped.
    #[test]
    fn openings_are_in_order_apart_and_do_not_depend_on_when_one_looks(
        windows in proptest::collection::vec(any_window(), 1..4),
        second in 1_262_304_000_u64..1_893_456_000,
        later in 0_u64..14 * 86_400,
    ) {
        let from = Timestamp(second * 1_000);
        let found = openings(&windows, from, 4);
        prop_assert!(!found.is_empty());
        for opening in &found {
            prop_assert!(opening.opens < opening.closes && from < opening.closes);
        }
        for pair in found.windows(2) {
            prop_assert!(pair[0].closes < pair[1].opens);
        }
        let then = from + tidegate_protocol::Millis(later * 1_000);
        let again = openings(&windows, then, 4);
        // What has no end within the time looked at is not told exactly.
        for opening in found.iter().filter(|o| then < o.closes && o.opens.0 > 0 && o.closes < NEVER) {
            prop_assert!(again.contains(opening), "{opening:?} is not in {again:?}");
        }
    }

    /// Of one window that does not touch itself: the length really passes, and the
    /// clock shows the start unless it was jumped over.
    #[test]
    fn a_window_is_as_long_as_it_says(
        start in 0..1_440_u16,
        minutes in 1..1_200_u32,
        zone in 0..ZONES.len(),
        day in 0..7_usize,
        second in 1_262_304_000_u64..1_893_456_000,
    ) {
        let day = Day::ALL[day];
        let window = WindowSpec {
            days: vec![day],
            start_time: Some(ClockTime(start)),
            length_minutes: Some(minutes),
            time_zone: Some(ZONES[zone].to_owned()),
            fit: None,
            overrun: false,
        };
        for opening in openings(std::slice::from_ref(&window), Timestamp(second * 1_000), 3) {
            prop_assert_eq!(opening.closes.since(opening.opens).0, u64::from(minutes) * 60_000);
            if !opening.text.contains("does not exist") {
                let shown = zoned(opening.opens, &zone_of(window.time_zone.as_deref()).unwrap());
                prop_assert_eq!(u16::try_from(i16::from(shown.hour()) * 60 + i16::from(shown.minute())).unwrap(), start);
                prop_assert_eq!(shown.weekday(), weekday(day));
            }
        }
    }

    /// Against the definition: each minute's clock is within the hours.
    #[test]
    fn coverage_is_that_of_every_minute(
        from in 0..1_440_u16,
        to in 0..1_440_u16,
        zone in 0..ZONES.len(),
        minute in 21_038_400_u64..31_557_600,
        length in 1_u64..3_000,
    ) {
        let hours = if from == to { Hours::Always } else { Hours::Daily(ClockTime(from), ClockTime(to)) };
        let contact = ContactSpec { available: hours, ..contact("always", ZONES.get(zone).copied()) };
        let tz = zone_of(ZONES.get(zone).copied()).unwrap();
        let begin = Timestamp(minute * 60_000);
        let end = Timestamp((minute + length) * 60_000);
        let within = |m: u64| {
            let shown = zoned(Timestamp(m * 60_000), &tz);
            let shown = u16::try_from(i16::from(shown.hour()) * 60 + i16::from(shown.minute())).unwrap();
            match hours {
                Hours::Always => true,
                Hours::Daily(ClockTime(a), ClockTime(b)) if a < b => a <= shown && shown < b,
                Hours::Daily(ClockTime(a), ClockTime(b)) => shown >= a || shown < b,
            }
        };
        let wanted = (minute..minute + length).all(within);
        prop_assert_eq!(contacts_cover(&contact, None, begin, end).is_ok(), wanted);
    }
}
