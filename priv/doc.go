// Package priv is the half of vmfs that runs as root: it mounts the tree,
// starts the other roles, opens files through openers that have their user's
// rights, has guests born in cgroups (package cgroup), makes their links (package
// network), and keeps the records by which a later daemon finds all of these.
//
// It trusts nobody. Its one client is core, which has no privilege: core's
// requests are a short table of verbs (see verbs), and one that a working
// core would never send ends core, not priv, and never a guest. It reads no
// byte of a user or of a guest and follows no path of a user's: openers do,
// which read the headers of images. It never touches a FUSE file system, its
// own included, so that none can stop it.
//
// It cannot verify on whose behalf core asks. It bounds that instead: for
// root, an opener opens only what lies below the directories that root
// listed. What each role may do is in package confine.
//
// Started by another user than root it has his rights, and so have all roles:
// see ordinary. It then trusts its PATH for fusermount3, as that user does.
package priv
