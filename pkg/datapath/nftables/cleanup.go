package nftables

import (
	"errors"
	"fmt"
	"os"
)

// Cleanup removes the tables. It is no error if there are none.
func Cleanup(o Options) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range families(o) {
		tables, err := conn.ListTablesOfFamily(f.table.Family)
		if err != nil {
			errs = append(errs, fmt.Errorf("list nftables tables: %w", err))
			continue
		}
		for _, t := range tables {
			if t.Name != o.Table {
				continue
			}
			conn.DelTable(f.table)
			if err := conn.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("delete nftables table %s: %w", f, err))
			}
		}
	}
	return errors.Join(append(errs, conn.CloseLasting())...)
}
