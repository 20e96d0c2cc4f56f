package nftables

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

func backendsOf(ports ...uint16) []datapath.Backend {
	var set []datapath.Backend
	for _, p := range ports {
		set = append(set, datapath.Backend{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), p)})
	}
	return set
}

func TestReslotTouchesAsLittleAsPossible(t *testing.T) {
	for name, tc := range map[string]struct {
		have, want, slots []datapath.Backend
	}{
		"nothing there":        {nil, backendsOf(1, 2, 3), backendsOf(1, 2, 3)},
		"nothing changes":      {backendsOf(3, 1, 2), backendsOf(1, 2, 3), backendsOf(3, 1, 2)},
		"one comes":            {backendsOf(3, 1), backendsOf(1, 2, 3), backendsOf(3, 1, 2)},
		"the last goes":        {backendsOf(1, 2, 3), backendsOf(1, 2), backendsOf(1, 2)},
		"the first goes":       {backendsOf(1, 2, 3), backendsOf(2, 3), backendsOf(3, 2)},
		"one takes the place":  {backendsOf(1, 2, 3), backendsOf(1, 3, 4), backendsOf(1, 4, 3)},
		"all go":               {backendsOf(1, 2), nil, nil},
		"a duplicate in there": {backendsOf(1, 1), backendsOf(1, 2), backendsOf(1, 2)},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, slices.Clip(append([]datapath.Backend{}, tc.slots...)), reslot(tc.have, tc.want))
		})
	}
}

func TestPickReachesEveryCount(t *testing.T) {
	last := uint32(0)
	for n := 1; n < 1_000_000; n += 1 + n/100 {
		pick, modulus := pickFor(n)
		require.LessOrEqual(t, pick, uint32(pickMask))
		require.GreaterOrEqual(t, modulus, uint32(n))
		require.LessOrEqual(t, float64(modulus-uint32(n))/float64(modulus), 1.0/64, "a draw of %d misses too often", n)
		require.GreaterOrEqual(t, pick, last)
		last = pick
	}
	pick, modulus := pickFor(exactPicks)
	require.Equal(t, [2]uint32{exactPicks, exactPicks}, [2]uint32{pick, modulus})
}

func TestRefHoldsItsParts(t *testing.T) {
	r := newRef(splitLocal, maxSets-1, 1024)
	require.Equal(t, setNumber(maxSets-1), r.set())
	require.EqualValues(t, splitLocal, uint32(r)>>profileShift)
	require.EqualValues(t, 1024, uint32(r)&pickMask)
	require.Zero(t, newRef(maskNobody, 0, 0))
}

func TestProfiles(t *testing.T) {
	local := datapath.Route{Set: 1, Empty: datapath.Drop}
	sources := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for name, tc := range map[string]struct {
		f    datapath.Frontend
		want int
	}{
		"ClusterIP without a detector": {datapath.Frontend{}, maskNobody},
		"ClusterIP":                    {datapath.Frontend{Masquerade: datapath.FromNode | datapath.FromOutside}, maskNonPods},
		"masquerade all":               {datapath.Frontend{Masquerade: datapath.FromEveryone}, maskEveryone},
		"restricted":                   {datapath.Frontend{Masquerade: datapath.FromEveryone, Sources: sources}, maskEveryone},
		"external, local policy":       {datapath.Frontend{Masquerade: datapath.FromNode, Outside: local, Sources: sources}, splitLocal},
		"what no rule can do":          {datapath.Frontend{Masquerade: datapath.FromPods}, -1},
		"restricted ClusterIP":         {datapath.Frontend{Sources: sources}, -1},
		"split without masquerade":     {datapath.Frontend{Outside: local}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := profileOf(&tc.f)
			if tc.want < 0 {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.EqualValues(t, tc.want, got)
		})
	}
}

func TestNestedPrefixesCollapse(t *testing.T) {
	var in []netip.Prefix
	for _, s := range []string{"10.1.0.0/16", "10.0.0.0/8", "192.0.2.7/32", "10.0.0.0/8"} {
		in = append(in, netip.MustParsePrefix(s))
	}
	require.Equal(t, []netip.Prefix{in[1], in[2]}, withoutNested(in))
	require.Equal(t, netip.MustParseAddr("10.255.255.255"), lastAddr(in[1]))
	require.Equal(t, netip.MustParseAddr("2001:db8::ffff"), lastAddr(netip.MustParsePrefix("2001:db8::/112")))
}

func TestNumbersAreReusedLast(t *testing.T) {
	n := newNumbers()
	n.reserve(2)
	take := func() setNumber {
		got, err := n.take()
		require.NoError(t, err)
		return got
	}
	require.Equal(t, []setNumber{1, 3, 4}, []setNumber{take(), take(), take()})
	n.release(3)
	n.release(1)
	n.release(1) // a second release is nothing
	n.reserve(3) // and a reserved number is not handed out
	require.Equal(t, setNumber(5), take())
	n.next = maxSets
	require.Equal(t, setNumber(1), take())
	_, err := n.take()
	require.ErrorContains(t, err, "all 524287 numbers are taken")
}

func TestKeysSurviveTheirEncoding(t *testing.T) {
	for _, s := range []string{"10.96.0.1:80", "[2001:db8::1]:65535"} {
		want := datapath.Addr{AddrPort: netip.MustParseAddrPort(s), Protocol: datapath.UDP}
		got, err := tupleAddr(tupleKey(want))
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, want.AddrPort, backendOf(backendVal(want.AddrPort)))
	}
	n, slot := slotOf(slotKey(77, 123))
	require.Equal(t, setNumber(77), n)
	require.Equal(t, 123, slot)
	_, err := tupleAddr("short")
	require.Error(t, err)
}

// A set that several frontends share is stored once, and a loopback frontend not at all.
func TestElements(t *testing.T) {
	s := webService(1, 2)
	s.Ports = s.Ports[:1]
	f := &s.Ports[0].Frontends
	*f = append(*f, datapath.Frontend{Kind: datapath.NodePort, IP: netip.MustParseAddr("127.0.0.1"), Port: 30080, Masquerade: datapath.FromEveryone})
	n := newNumbers()
	st, err := assign(s, (*state)(nil), map[setOf]bool{}, func(bool) (setNumber, error) { return n.take() })
	require.NoError(t, err)
	elements, err := st.elements()
	require.NoError(t, err)
	count := map[setKind]int{}
	for _, e := range elements {
		count[e.set]++
	}
	require.Equal(t, map[setKind]int{frontendsMap: 2, insideMap: 1, backendsMap: 3, clusterIPSet: 1, hairpinSet: 1}, count)
}
