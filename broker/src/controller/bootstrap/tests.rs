use super::*;

fn voter(id: u32) -> ListedVoter {
    ListedVoter { node_id: NodeId(id), address: format!("host:{id}") }
}

fn me() -> Formatted {
    Formatted {
        node_id: NodeId(1),
        directory_id: DirectoryId(0x11),
        voters: vec![voter(1), voter(2), voter(3)],
    }
}

fn answer(id: u32) -> BootstrapReply {
    BootstrapReply {
        node_id: id,
        directory_id: Some(DirectoryId(u128::from(id)).into()),
        voters: me().voters.iter().map(to_wire).collect(),
        ..BootstrapReply::default()
    }
}

fn member(id: u32, directory: u128) -> Voter {
    Voter { node_id: id, address: format!("host:{id}"), directory_id: Some(DirectoryId(directory).into()) }
}

#[test]
fn voters_with_the_same_list_and_no_cluster_are_the_first_members() {
    assert_eq!(judge(&me(), &voter(2), &answer(2)), Answer::Same(DirectoryId(2)));
}

#[test]
fn another_list_or_another_broker_contradicts() {
    let mut other = answer(2);
    other.voters.pop();
    let Answer::Contradicts(why) = judge(&me(), &voter(2), &other) else { panic!("not noticed") };
    assert!(why.contains("start all of them with the same list"), "{why}");
    assert!(why.contains("1@host:1,2@host:2,3@host:3"), "{why}");
    let Answer::Contradicts(why) = judge(&me(), &voter(3), &answer(2)) else { panic!("not noticed") };
    assert!(why.contains("at host:3 is broker 2"), "{why}");
    let joins = BootstrapReply { voters: Vec::new(), ..answer(2) };
    let Answer::Contradicts(why) = judge(&me(), &voter(2), &joins) else { panic!("not noticed") };
    assert!(why.contains("was started with --join"), "{why}");
}

#[test]
fn a_cluster_that_exists_takes_only_the_directories_that_it_knows() {
    let initialised = |members| BootstrapReply {
        initialised: true,
        cluster_id: Some(ClusterId(7).into()),
        members,
        ..answer(2)
    };
    let known = initialised(vec![member(1, 0x11), member(2, 2)]);
    assert_eq!(judge(&me(), &voter(2), &known), Answer::Expected);
    // Hole H5: a voter's disk was wiped.
    let Answer::Refused(why) = judge(&me(), &voter(2), &initialised(vec![member(1, 0x99), member(2, 2)]))
    else {
        panic!("another directory passes")
    };
    assert!(why.contains("--join") && why.contains("highwater cluster remove 1"), "{why}");
    let Answer::Refused(why) = judge(&me(), &voter(2), &initialised(vec![member(2, 2)])) else {
        panic!("a stranger passes")
    };
    assert!(why.contains("start this broker with --join host:2"), "{why}");
}
