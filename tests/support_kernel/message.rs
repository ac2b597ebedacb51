//! Requests of rtnetlink, and what is read out of its answers.

use std::net::Ipv4Addr;

use nlbus::wire::{Attributes, HEADER_LEN, Header, MessageBuilder, nlm};

pub(crate) const NEWLINK: u16 = 16;
pub(crate) const DELLINK: u16 = 17;
pub(crate) const GETLINK: u16 = 18;
pub(crate) const NEWADDR: u16 = 20;
pub(crate) const DELADDR: u16 = 21;
pub(crate) const GETADDR: u16 = 22;
pub(crate) const NEWROUTE: u16 = 24;
pub(crate) const DELROUTE: u16 = 25;
pub(crate) const GETROUTE: u16 = 26;
pub(crate) const NEWQDISC: u16 = 36;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const TCA_KIND: u16 = 1;
const ROOT: u32 = u32::MAX;

/// A request for a change that fails if what it makes is there already, and is acknowledged.
fn change(kind: u16) -> MessageBuilder {
    MessageBuilder::new(kind, nlm::REQUEST | nlm::ACK | nlm::CREATE | nlm::EXCL)
}

fn link_body(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [[0; 4], index.to_le_bytes(), flags.to_le_bytes(), change.to_le_bytes()].concat()
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((payload.len() + 4) as u16).to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

pub(crate) fn add_veth(name: &str, peer: &str) -> Vec<u8> {
    let peer = [link_body(0, 0, 0), attribute(IFLA_IFNAME, &text(peer))].concat();
    let data = attribute(VETH_INFO_PEER, &peer);
    let info = [attribute(INFO_KIND, b"veth"), attribute(INFO_DATA, &data)].concat();
    change(NEWLINK)
        .body(&link_body(0, 0, 0))
        .attribute(IFLA_IFNAME, &text(name))
        .unwrap()
        .attribute(IFLA_LINKINFO, &info)
        .unwrap()
        .finish()
}

pub(crate) fn set_up(index: u32) -> Vec<u8> {
    MessageBuilder::new(NEWLINK, nlm::REQUEST | nlm::ACK)
        .body(&link_body(index, IFF_UP, IFF_UP))
        .finish()
}

pub(crate) fn delete_link(index: u32) -> Vec<u8> {
    MessageBuilder::new(DELLINK, nlm::REQUEST | nlm::ACK).body(&link_body(index, 0, 0)).finish()
}

fn address_change(builder: MessageBuilder, index: u32, address: Ipv4Addr) -> Vec<u8> {
    builder
        .body(&[AF_INET, 32, 0, 0])
        .body(&index.to_le_bytes())
        .attribute(IFA_LOCAL, &address.octets())
        .unwrap()
        .finish()
}

pub(crate) fn add_address(index: u32, address: Ipv4Addr) -> Vec<u8> {
    address_change(change(NEWADDR), index, address)
}

pub(crate) fn delete_address(index: u32, address: Ipv4Addr) -> Vec<u8> {
    let builder = MessageBuilder::new(DELADDR, nlm::REQUEST | nlm::ACK);
    address_change(builder, index, address)
}

fn route_change(builder: MessageBuilder, index: u32, destination: Ipv4Addr) -> Vec<u8> {
    // main table, protocol static, scope link, unicast
    builder
        .body(&[AF_INET, 32, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0])
        .attribute(RTA_DST, &destination.octets())
        .unwrap()
        .attribute(RTA_OIF, &index.to_le_bytes())
        .unwrap()
        .finish()
}

pub(crate) fn add_route(index: u32, destination: Ipv4Addr) -> Vec<u8> {
    route_change(change(NEWROUTE), index, destination)
}

pub(crate) fn delete_route(index: u32, destination: Ipv4Addr) -> Vec<u8> {
    route_change(MessageBuilder::new(DELROUTE, nlm::REQUEST | nlm::ACK), index, destination)
}

pub(crate) fn add_pfifo(index: u32) -> Vec<u8> {
    change(NEWQDISC)
        .body(&[0; 4])
        .body(&index.to_le_bytes())
        .body(&[0; 4])
        .body(&ROOT.to_le_bytes())
        .body(&[0; 4])
        .attribute(TCA_KIND, &text("pfifo"))
        .unwrap()
        .finish()
}

/// One link, by its index.
pub(crate) fn link(index: u32, sequence: u32, pid: u32) -> Vec<u8> {
    let builder = MessageBuilder::new(GETLINK, nlm::REQUEST).sequence(sequence).pid(pid);
    builder.body(&link_body(index, 0, 0)).finish()
}

/// All links (GETLINK), addresses (GETADDR) or routes (GETROUTE).
pub(crate) fn dump(kind: u16, sequence: u32, pid: u32) -> Vec<u8> {
    let body: &[u8] = match kind {
        GETLINK => &[0; 16],
        GETADDR => &[0; 8],
        _ => &[0; 12],
    };
    let builder = MessageBuilder::new(kind, nlm::REQUEST | nlm::DUMP);
    builder.sequence(sequence).pid(pid).body(body).finish()
}

/// `message` with another sequence number and port id.
pub(crate) fn numbered(mut message: Vec<u8>, sequence: u32, pid: u32) -> Vec<u8> {
    let header = Header { sequence, pid, ..Header::parse(&message).unwrap() };
    message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    message
}

/// The index in the body of a link message or an address message.
pub(crate) fn index_in(body: &[u8]) -> u32 {
    u32::from_le_bytes(body[4..8].try_into().unwrap())
}

/// The address in the body of an IPv4 address message.
pub(crate) fn address_in(body: &[u8]) -> Option<Ipv4Addr> {
    let mut attributes = Attributes::new(&body[8..], 0).map(Result::unwrap);
    let local = attributes.find(|attribute| attribute.kind == IFA_LOCAL)?;
    Some(<[u8; 4]>::try_from(local.payload).ok()?.into())
}
