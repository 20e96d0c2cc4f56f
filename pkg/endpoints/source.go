package endpoints

import "context"

// Source feeds a store: it hands over all objects there are, calls Synced, and follows changes until ctx ends. Run
// returns an error only if it cannot begin; later faults are retried or become problems.
type Source interface {
	Run(ctx context.Context, s *Store) error
}

var (
	_ Source = (*APISource)(nil)
	_ Source = (*ManifestSource)(nil)
)
