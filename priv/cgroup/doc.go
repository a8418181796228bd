// Package cgroup bounds what the process of a guest uses of its host, and its
// QEMU with it, by a cgroup of version 2 for each: memory, processes, and the
// share of the processors when there are too few.
//
// It keeps to what is the daemon's: a cgroup that root names for it, or the
// one that the daemon was started in, if that is not the root, nobody else is
// in there, and it was delegated where systemd rules. In that it makes a tree
// that is called after its run directory, and in the tree a cgroup for each
// guest. What is somebody else's it leaves as it is, and says why there are no
// limits then: a host without cgroups still runs guests.
//
// Records tell a later daemon what was made, with the kernel's number of each
// cgroup, so that it ends and removes those and no others. A guest is born in
// its cgroup, and never moved. The package trusts its caller to hold a guest's
// id while it works on that, and the host's root not to move cgroups about.
package cgroup
