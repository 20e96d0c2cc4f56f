package endpoints

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Problem is something wrong with an object. Only the part it names is ignored.
type Problem struct {
	Object string `json:"object"` // such as "service default/web", "endpointslice default/web-x2", "file web.yaml"
	Field  string `json:"field"`
	Text   string `json:"text"`
}

// String is the one line that is logged.
func (p Problem) String() string {
	if p.Field == "" {
		return p.Object + ": " + p.Text
	}
	return p.Object + ": " + p.Field + ": " + p.Text
}

// fault is a Problem whose object is not said yet.
type fault struct {
	field, text string
}

func faultf(field, format string, args ...any) fault {
	return fault{field, fmt.Sprintf(format, args...)}
}

// maxFaults bounds what one object may say: a hostile one may have a million bad endpoints.
const maxFaults = 10

// stage tells the problems of an object apart by who found them: each stage replaces only its own.
type stage uint8

const (
	stageRead  stage = iota // found in the object alone
	stageClaim              // found between objects
	stageFile               // found in a manifest
)

type problemKey struct {
	object string
	stage  stage
}

// problems are the problems of the objects as they are now. An object without any has no entry.
type problems struct {
	log *slog.Logger
	all map[problemKey][]fault
}

// set replaces what the stage found wrong with the object and logs what was not known before.
func (p *problems) set(s stage, object string, faults []fault) {
	key := problemKey{object, s}
	known := p.all[key]
	if len(faults) == 0 {
		if known != nil {
			delete(p.all, key)
		}
		return
	}
	if n := len(faults) - maxFaults; n > 0 {
		faults = append(slices.Clone(faults[:maxFaults]), faultf("", "%d more problems", n))
	}
	for _, f := range faults {
		if !slices.Contains(known, f) {
			p.log.Warn("ignored a part of an object", "problem", Problem{object, f.field, f.text}.String())
		}
	}
	p.all[key] = faults
}

// forget drops the problems of objects whose names begin with prefix and are not kept.
func (p *problems) forget(prefix string, kept func(object string) bool) {
	for key := range p.all {
		if strings.HasPrefix(key.object, prefix) && !kept(key.object) {
			delete(p.all, key)
		}
	}
}

// list returns all problems, ordered by object.
func (p *problems) list() []Problem {
	keys := slices.SortedFunc(maps.Keys(p.all), func(a, b problemKey) int {
		return cmp.Or(cmp.Compare(a.object, b.object), cmp.Compare(a.stage, b.stage))
	})
	var list []Problem
	for _, key := range keys {
		for _, f := range p.all[key] {
			list = append(list, Problem{key.object, f.field, f.text})
		}
	}
	return list
}
