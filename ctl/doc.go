// Package ctl is what a virtual machine and a switch are: name, attributes,
// policy, states and verbs, events, the limits of who owns them, and the text
// form of each. It decides; the interfaces of guest.go and network.go say what
// it needs done by others.
//
// It trusts the Host, which is the privileged half of the same program. It
// does not trust a Guest: what a guest process says is data about one launch
// of one machine, and nothing it says can touch another. It does not know
// what a request is, nor whether it came through FUSE or 9P: who asks is a
// Cred that a door has established.
//
// It cannot open a file for a user, start a process or look at a guest's
// memory. It writes below one directory, STATE:
//
//	vmfs                      format, the serial numbers that are used, the policy of files of no object
//	events                    the last events, a line each
//	vm/NAME/definition.N      all that is known of a machine, replaced as a whole: 0 and 1 in turn
//	vm/NAME/console           the end of the console of its former launches
//	vm/NAME/efivars.HASH      what a UEFI firmware keeps, written by the guest
//	switch/NAME/definition.N  the same of a switch, with the leases of its NICs
//	user/NAME/definition.N    the limits of a user
//	removed/                  machines and switches that were removed, for 30 days
//
// One text holds an object's attributes, their setters' uids and its mode
// bits, so that one write changes all of them or none.
//
// Of locks, a machine's edit comes before a switch's, and both before all
// others. What the kernel has of a switch is changed with its edit held; of
// the NICs of a machine that runs, with the machine's.
package ctl
