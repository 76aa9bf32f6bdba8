//! What ranks say to each other before a run, and who is not taken in.

use super::message::{FromLeader, FromMember, Hello};
use super::wire::Wire;
use super::{Job, Leader, Meeting, Member, RanksError};
use crate::checkpoint::Kind;
use crate::run::Interrupt;
use std::io::Write as _;
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CPU: &str = "cpu f32";
/// As sent between processes that have nothing in common with rank 0 but the address.
const STRANGE: [&[u8]; 3] = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x02\x00\x00\x00{}"];

fn job() -> Job {
    let (config, images) = ("[train]\nbatch = 2\n".to_owned(), "abc".to_owned());
    Job { model: Kind::Generator, ranks: 2, step: 7, config, images }
}

/// A meeting of two, and rank 0 waiting there with a tokenizer of these weights.
fn waiting(
    secret: Option<&str>,
    tokenizer: &[f32],
    interrupt: &Interrupt,
) -> (String, JoinHandle<Result<Option<Leader>, RanksError>>) {
    let meeting = Meeting::open("127.0.0.1:0", 2, CPU, secret.map(str::to_owned)).unwrap();
    let (address, tokenizer) = (meeting.address().to_string(), tokenizer.to_vec());
    let interrupt = interrupt.clone();
    let rank_0 =
        std::thread::spawn(move || meeting.gather(&job(), &tokenizer, 3, &interrupt, |_| ()));
    (address, rank_0)
}

fn wire(address: &str) -> Wire {
    Wire::new(TcpStream::connect(address).unwrap(), "rank 0".to_owned()).unwrap()
}

/// Joins and says that it is ready.
fn ready(address: &str) -> Wire {
    let mut wire = wire(address);
    wire.send(&FromMember::Hello(Hello::new(CPU, None))).unwrap();
    assert!(matches!(wire.receive().unwrap(), FromLeader::Job(_)));
    wire.receive_values(&mut [0.0]).unwrap();
    wire.send(&FromMember::Ready).unwrap();
    wire
}

#[test]
fn a_member_gets_its_job_and_the_tokenizer_bit_for_bit() {
    // More than a piece, and values that text would not keep.
    let weights: Vec<f32> = (0..300_001u32).map(|i| f32::from_bits(0x3f80_0000 + i)).collect();
    let (address, rank_0) = waiting(None, &weights, &Interrupt::none());
    let mut member = Member::join(&address, CPU, None, &Interrupt::none()).unwrap().unwrap();
    assert_eq!(*member.job(), job());
    assert_eq!(member.tokenizer(weights.len()).unwrap(), weights);
    member.give_up("no images here");
    match rank_0.join().unwrap() {
        Err(RanksError::Failed { peer, reason }) => {
            assert!(peer.starts_with("127.0.0.1:"), "{peer}");
            assert_eq!(reason, "no images here");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn strangers_and_others_are_not_taken_in() {
    let (address, rank_0) = waiting(Some("key"), &[], &Interrupt::none());
    for sent in STRANGE {
        TcpStream::connect(&address).unwrap().write_all(sent).unwrap();
    }
    let refused = |hello: &Hello| {
        let mut wire = wire(&address);
        wire.send(&FromMember::Hello(hello.clone())).unwrap();
        match wire.receive().unwrap() {
            FromLeader::Refused(reason) => reason,
            other => panic!("{}", other.name()),
        }
    };
    let hello = Hello::new(CPU, Some("key".to_owned()));
    let without = refused(&Hello { secret: None, program: "x".to_owned(), ..hello.clone() });
    assert!(without.contains("SAR_RANKS_SECRET"), "{without}");
    assert!(!without.contains("sar-train"), "{without}");
    assert!(refused(&Hello { program: "x".to_owned(), ..hello.clone() }).contains("this is x"));
    let other = Member::join(&address, "cuda bf16", Some("key".to_owned()), &Interrupt::none())
        .err()
        .unwrap();
    assert!(other.to_string().contains("cpu f32, and this process on cuda bf16"), "{other}");
    // The one that it waits for is none of those.
    let mut member =
        Member::join(&address, CPU, Some("key".to_owned()), &Interrupt::none()).unwrap().unwrap();
    member.give_up("enough");
    assert!(matches!(rank_0.join().unwrap(), Err(RanksError::Failed { .. })));
}

/// Those who leave while others are waited for, before or after they were ready, leave their places to others.
#[test]
fn places_of_those_who_leave_are_free_again() {
    let meeting = Meeting::open("127.0.0.1:0", 3, CPU, None).unwrap();
    let address = meeting.address().to_string();
    let (said, told) = std::sync::mpsc::channel();
    let rank_0 = std::thread::spawn(move || {
        let job = Job { ranks: 3, ..job() };
        let tell = move |text: &str| said.send(text.to_owned()).unwrap();
        meeting.gather(&job, &[1.0], 3, &Interrupt::none(), tell)
    });
    drop(Member::join(&address, CPU, None, &Interrupt::none()).unwrap().unwrap());
    assert!(told.recv().unwrap().contains("is lost"));
    drop(ready(&address));
    assert!(told.recv().unwrap().contains("is ready: 2 of 3"));
    assert!(told.recv().unwrap().contains("is lost"));
    // One that gives up after it was ready says why.
    let mut one = Member::join(&address, CPU, None, &Interrupt::none()).unwrap().unwrap();
    one.tokenizer(1).unwrap();
    let stopped = Interrupt::none();
    stopped.ask();
    assert_eq!(one.begin(&stopped).unwrap(), None);
    assert!(told.recv().unwrap().contains("is ready: 2 of 3"));
    one.give_up("stopped there");
    assert!(told.recv().unwrap().contains("has failed: stopped there"));
    let (mut first, mut second) = (ready(&address), ready(&address));
    drop(rank_0.join().unwrap().unwrap().unwrap());
    let mut numbers = [&mut first, &mut second].map(|member| match member.receive().unwrap() {
        FromLeader::Begin { rank } => rank,
        other => panic!("{}", other.name()),
    });
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn waiting_ends_when_the_user_asks_whoever_is_there() {
    let interrupt = Interrupt::none();
    let (address, rank_0) = waiting(None, &[1.0], &interrupt);
    // Neither says who it is in time: one says nothing, one begins to.
    let silent = TcpStream::connect(&address).unwrap();
    let mut slow = TcpStream::connect(&address).unwrap();
    slow.write_all(&[9, 0, 0]).unwrap();
    // One says who it is, and then a part of something.
    let mut half = TcpStream::connect(&address).unwrap();
    let hello = serde_json::to_vec(&FromMember::Hello(Hello::new(CPU, None))).unwrap();
    let sent = [&(hello.len() as u32).to_le_bytes()[..], &hello, &[7]].concat();
    half.write_all(&sent).unwrap();
    let mut joined = Member::join(&address, CPU, None, &Interrupt::none()).unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(10));
    let asked = Instant::now();
    interrupt.ask();
    assert!(matches!(rank_0.join().unwrap(), Ok(None)));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    joined.tokenizer(1).unwrap();
    assert_eq!(joined.begin(&Interrupt::none()).unwrap(), None);
    drop((silent, slow, half));
}

#[test]
fn the_end_of_the_run_is_told() {
    let (address, rank_0) = waiting(None, &[1.0], &Interrupt::none());
    let mut member = ready(&address);
    drop(rank_0.join().unwrap().unwrap().unwrap());
    assert!(matches!(member.receive().unwrap(), FromLeader::Begin { rank: 1 }));
    assert!(matches!(member.receive().unwrap(), FromLeader::Done));
    assert!(matches!(member.receive::<FromLeader>(), Err(RanksError::Lost { .. })));
}

#[test]
fn nobody_is_where_nobody_listens() {
    let address = Meeting::open("127.0.0.1:0", 2, CPU, None).unwrap().address().to_string();
    let gone = Member::join(&address, CPU, None, &Interrupt::none()).err().unwrap();
    assert!(matches!(gone, RanksError::NobodyThere { .. }), "{gone}");
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let taken = Meeting::open("127.0.0.1:0", 2, CPU, None).unwrap();
    let address = taken.address().to_string();
    let again = Meeting::open(&address, 2, CPU, None).err().unwrap();
    assert!(again.to_string().contains(&address), "{again}");
}

/// A run that has nothing left to do does not leave the others waiting for it.
#[test]
fn who_comes_to_a_finished_run_is_told() {
    let mut meeting = Meeting::open("127.0.0.1:0", 3, CPU, None).unwrap();
    meeting.expect_all();
    let address = meeting.address().to_string();
    let rank_0 = std::thread::spawn(move || meeting.turn_away(&Interrupt::none()));
    // A stranger is not counted.
    drop(TcpStream::connect(&address).unwrap());
    for _ in 0..2 {
        assert!(Member::join(&address, CPU, None, &Interrupt::none()).unwrap().is_none());
    }
    rank_0.join().unwrap();
    assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
}

/// Nor does one that fails before it begins.
#[test]
fn who_comes_to_a_run_that_does_not_begin_is_told() {
    let mut meeting = Meeting::open("127.0.0.1:0", 2, CPU, None).unwrap();
    meeting.expect_all();
    let address = meeting.address().to_string();
    let rank_1 =
        std::thread::spawn(move || Member::join(&address, CPU, None, &Interrupt::none()).err());
    drop(meeting);
    let told = rank_1.join().unwrap().unwrap();
    assert!(matches!(&told, RanksError::Refused { .. }), "{told}");
}
