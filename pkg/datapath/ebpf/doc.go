// Package ebpf makes sockets of this node reach Services by rewriting the address at connect, sendmsg, recvmsg and
// getpeername: no packet is ever translated, an established connection costs nothing.
//
// # What it serves
//
// TCP and UDP, IPv4 and IPv6, also IPv4 spoken by an IPv6 socket, for sockets of processes in the cgroup it is
// attached to. Every such client is on this node, so a frontend needs only its Inside route. It leaves to nftables,
// by not knowing them: SCTP, frontends with Sources (a client's address is not known before it is bound), frontends
// whose set is empty and says Drop, and frontends with affinity, except those on a loopback address, which packets
// cannot reach anyhow.
//
// A frontend whose set is empty and says Reject gives ECONNREFUSED to a TCP connect and to an unconnected UDP send.
// A UDP connect to it is left alone: under kube-proxy it succeeds, the reject comes with the first datagram, and the
// socket works once there is a backend; nftables does all three. On kernels without bpf_set_retval (before
// 5.18) such frontends are not known here at all, since the only error a hook can give there is EPERM.
//
// Frontends on a loopback address are NodePorts of the node: only sockets in its network namespace, that of the process
// that loaded the programs, are served there. A pod's loopback addresses are its own. Kernels before 5.14 do not tell
// one namespace from another; there nobody is.
//
// An unconnected UDP socket keeps its backend for each frontend (the last four) as long as that backend is in the
// set. recvmsg and getpeername show the address that was dialled.
//
// # Maps
//
//	frontends4, frontends6   what a client dials → set id, with a fingerprint of the key
//	sets                     set id → offset and count, one word
//	backends                 blocks of backends, each sorted
//	connected, unconnected   the state of a socket, which lives and dies with it
//	counters                 totals
//
// Go alone writes the first four, the programs alone the others. sets and backends are written through a mapping, so
// a change of endpoints is no system call.
//
// # Order of writes
//
//  1. The backends of a changed set go to a free block; then one store of the set's word publishes them.
//  2. Frontends are put; each put is atomic.
//  3. Frontends that are gone are deleted.
//  4. Sets no frontend points at are retired. A retired block or set id is used again after a second at the
//     earliest, when no program can still be reading it.
//
// So a program sees the old set or the new one, each complete. A process that dies in between leaves blocks
// and sets nobody points at; the next one finds them free.
//
// # Files
//
// The pin directory holds one link per hook and `maps`, a symbolic link to the directory of the maps in use, whose
// name carries the layout version. When maps become too small, or the layout is another, new maps are made and
// filled completely, the symbolic link is replaced, and each hook gets the program on the new maps in one atomic
// update. The hook is never absent, and it goes on working when the agent is gone.
package ebpf
