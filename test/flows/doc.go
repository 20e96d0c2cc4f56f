// Package flows is the flow table: who reaches whom through which address of a Service, and as whom.
//
// table_test.go has the table. Every row is dialed with real sockets over TCP and UDP, IPv4 and IPv6, in a
// laboratory in which the real agent runs, once for each datapath. The numbers of the rows follow the cases
// of kube-proxy's own tests (pkg/proxy/nftables/proxier_test.go); where a datapath deliberately differs from
// kube-proxy, the row says so.
//
// A new kind of frontend or a new policy begins with a row here.
package flows
