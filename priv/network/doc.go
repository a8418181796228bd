// Package network is what priv does to the links of the host, with netlink
// and nftables: it opens taps, makes bridges and VRFs, and gives links their
// aliases, masters, addresses and groups.
//
// It trusts nobody who names an interface. A link is named by what it is for,
// and a record says which interface that is; a name counts only where root
// listed it. It reads no byte of a guest or a user.
//
// A record is written before what it tells of can be lost track of, so that
// whoever opens the same records later finds all that was made: a bridge by
// its name and the MAC it was to have, an address, a group or an uplink by
// being in the record already. A tap needs no such care before its record is
// there, because it goes with the last copy of its file.
//
// What was made is taken away by Release. What was found gets back the alias,
// the flags, the group and the master that it had, and loses the addresses
// that it was given here, and nothing else.
//
// # What a guest can reach of the host
//
// A guest sends whatever it likes. The kernel would answer for any address of
// the host on any link that is up, and give every link an IPv6 address that
// the host's services listen on. So a link that is made here has IPv6 off
// until it is given an IPv6 address, and then takes no advertisements and no
// redirects; it answers ARP for its own addresses only, and takes no IPv4
// packet whose source it would not send to (rp_filter). Links that were found
// keep what they have.
package network
