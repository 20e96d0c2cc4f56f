package datapath

import (
	"context"
	"fmt"
)

// Datapath makes the kernel forward what it is told. The package comment has the contract.
type Datapath interface {
	Apply(ctx context.Context, u Update) error
	Close() error
	Stats() Stats
}

// Update is a change of what the kernel has to do. The first one must be Full. An empty one asks the datapath to look
// whether its foundations in the kernel are still there, and to repair them.
type Update struct {
	// Full says that Services is the whole world: what the kernel holds beyond it is removed.
	Full bool
	// Services are the new or changed Services, each complete.
	Services []*Service
	// Removed are the Services that are gone. Naming an unknown one is no error.
	Removed []Name
	// LocalPods is how to tell local pods; nil means unchanged. The first Update must have it.
	LocalPods *LocalPods
}

// ServiceError is a failure to program one Service. The last good state of that Service stays in the kernel.
type ServiceError struct {
	Service Name
	Err     error
}

// Error names the Service.
func (e *ServiceError) Error() string { return fmt.Sprintf("program service %s: %v", e.Service, e.Err) }

// Unwrap returns the cause.
func (e *ServiceError) Unwrap() error { return e.Err }

// Stats counts since a datapath was opened.
type Stats struct {
	Writes   int64 // entries written to or deleted from the kernel; a restart with nothing changed leaves it at 0
	Services int   // Services held
}

// Add returns the counts of two datapaths together, which hold the same Services.
func (s Stats) Add(t Stats) Stats {
	return Stats{Writes: s.Writes + t.Writes, Services: max(s.Services, t.Services)}
}
