// Package lease is the process that answers DHCP and sends router
// advertisements to guests, and core's end of the conversation with it.
//
// The process holds one packet socket for each link, which priv opened, bound
// and filtered, and what core said is to be answered there: it allots
// nothing, remembers nothing, and asks nobody. A guest is known by the source
// of its Ethernet frames; one that core named no address for gets no answer,
// and neither does one whose message says that it is another.
//
// It trusts core. It does not trust a guest: every byte of a frame is a
// guest's to choose, so that each is counted before it is read, answered only
// so often, and costs no memory that stays. It cannot open a file, make or
// bind a socket, see another link than those that it was handed, or send by
// what the host's routes and filters say. It cannot keep a guest from
// answering others on an unlocked switch.
package lease
