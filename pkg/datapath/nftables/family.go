package nftables

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// family is everything that differs between IPv4 and IPv6: the table with its sets, where an address lies in a
// packet, and the code of an ICMP answer.
type family struct {
	ipv6                     bool
	table                    *nftables.Table
	addrLen                  uint32
	saddrOffset, daddrOffset uint32 // in the network header
	portUnreachable          uint8  // ICMP code
	sets                     [numSets]*nftables.Set

	// What the kernel has: whether the table exists, and the name of its marker chain (baseName).
	exists bool
	base   string
	// What comes next: the marker chain to write, and whether the table has to be another one.
	want    string
	replace bool
}

// setKind names the sets and maps of a table. ARCHITECTURE.md has the table of keys, values, writers and readers.
type setKind uint8

const (
	frontendsMap  setKind = iota // address . protocol . port -> reference to a backend set
	insideMap                    // the same for clients on this node, where they get another set
	backendsMap                  // set . slot -> address . port
	picksMap                     // pick -> goto pick-n
	clusterIPSet                 // addresses that belong to one Service alone
	rejectedSet                  // address . protocol . port without a backend: reject
	droppedSet                   // the same: drop
	hairpinSet                   // address . the same address, of backends on this node
	restrictedSet                // address . protocol . port that only some sources may use
	allowedSet                   // address . protocol . port . source prefix
	numSets
)

func (k setKind) String() string {
	return [numSets]string{"frontends", "inside", "backends", "picks", "cluster-ips", "rejected", "dropped", "hairpin", "restricted", "allowed"}[k]
}

func newFamily(ipv6 bool, table string) *family {
	f := &family{ipv6: ipv6, addrLen: 4, saddrOffset: 12, daddrOffset: 16, portUnreachable: 3}
	f.table = &nftables.Table{Name: table, Family: nftables.TableFamilyIPv4}
	addr := nftables.TypeIPAddr
	if ipv6 {
		f.addrLen, f.saddrOffset, f.daddrOffset, f.portUnreachable = 16, 8, 24, 4
		f.table.Family = nftables.TableFamilyIPv6
		addr = nftables.TypeIP6Addr
	}
	tuple := []nftables.SetDatatype{addr, nftables.TypeInetProto, nftables.TypeInetService}
	set := func(k setKind, key ...nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: f.table, Name: k.String(), ID: uint32(k) + 1, KeyType: key[0], Concatenation: len(key) > 1}
		if len(key) > 1 {
			s.KeyType = nftables.MustConcatSetType(key...)
		}
		f.sets[k] = s
		return s
	}
	data := func(s *nftables.Set, t ...nftables.SetDatatype) *nftables.Set {
		s.IsMap, s.DataType = true, t[0]
		if len(t) > 1 {
			s.DataType = nftables.MustConcatSetType(t...)
		}
		return s
	}
	// The kernel's scratch field of a packet here is its priority, whose type in nft is classid. A slot has
	// the type mark because nft prints no plain integers in a concatenation.
	data(set(frontendsMap, tuple...), nftables.TypeClassID)
	data(set(insideMap, tuple...), nftables.TypeClassID)
	data(set(backendsMap, nftables.TypeClassID, nftables.TypeMark), addr, nftables.TypeInetService)
	data(set(picksMap, nftables.TypeClassID), nftables.TypeVerdict).KeyByteOrder = binaryutil.NativeEndian
	set(clusterIPSet, addr)
	set(rejectedSet, tuple...)
	set(droppedSet, tuple...)
	set(hairpinSet, addr, addr)
	set(restrictedSet, tuple...)
	set(allowedSet, append(tuple, addr)...).Interval = true
	return f
}
