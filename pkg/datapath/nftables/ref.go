package nftables

import (
	"fmt"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// ref is what a frontend maps to: a backend set, how to draw from it and who is masqueraded, in the 32 bits of a
// packet's priority.
//
//	 31 30 | 29 ........ 11 | 10 ..... 0
//	profile|   set number   |   pick
type ref uint32

const (
	pickBits     = 11
	pickMask     = 1<<pickBits - 1
	profileShift = 30
	profileMask  = 3 << profileShift
	setMask      = 1<<profileShift - 1 - pickMask
	maxSets      = setMask>>pickBits + 1
)

// The profiles: who is masqueraded, and whether clients on this node get a set of their own.
const (
	maskNobody   = iota
	maskNonPods  // everybody but local pods
	maskEveryone //
	splitLocal   // the node itself; pods and the node get the set in the map "inside"
)

// setNumber identifies a backend set within a family. It lives as long as the set and survives a restart in
// the references of the frontends.
type setNumber uint32

func newRef(profile uint32, n setNumber, backends int) ref {
	pick := uint32(0)
	if backends > 0 {
		pick, _ = pickFor(backends)
	}
	return ref(profile<<profileShift | uint32(n)<<pickBits | pick)
}

func (r ref) set() setNumber { return setNumber(uint32(r) & setMask >> pickBits) }

// key is the reference as the map of backends has it: the set alone.
func (n setNumber) key() uint32 { return uint32(n) << pickBits }

// exactPicks is the largest number of backends that is drawn from exactly.
const exactPicks = 1024

// pickFor returns the pick of a set with that many backends, and the modulus of its draw. Up to exactPicks
// the two are the count. Beyond it counts are rounded up in steps of 1/64, so that the 11 bits of a pick
// reach millions of backends; a draw beyond the last slot is repeated (at most 1 in 64, three times: 1 in
// 262,144 connections falls on slot 0 for it).
func pickFor(backends int) (pick, modulus uint32) {
	n := uint32(backends)
	for pick = min(n, exactPicks); modulusOf(pick) < n; pick++ {
	}
	return pick, modulusOf(pick)
}

// modulusOf returns the modulus that a pick stands for.
func modulusOf(pick uint32) uint32 {
	modulus := min(pick, exactPicks)
	for ; pick > exactPicks; pick-- {
		modulus += modulus / 64
	}
	return modulus
}

// profileOf translates the model's words into a profile.
func profileOf(f *datapath.Frontend) (uint32, error) {
	split := f.Inside != f.Outside
	switch {
	case split && f.Masquerade == datapath.FromNode, f.Masquerade == datapath.FromNode:
		return splitLocal, nil
	case split:
	case f.Masquerade == datapath.FromNobody && len(f.Sources) == 0:
		return maskNobody, nil
	case f.Masquerade == datapath.FromNode|datapath.FromOutside && len(f.Sources) == 0:
		return maskNonPods, nil
	case f.Masquerade == datapath.FromEveryone:
		return maskEveryone, nil
	}
	return 0, fmt.Errorf("frontend %s:%d: no rule masquerades %03b with sources %v and split %t", f.IP, f.Port, f.Masquerade, f.Sources, split)
}
