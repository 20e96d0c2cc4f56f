// Package examples holds the Services of a small web shop as a cluster would have them, for `lbproxy demo` and for
// trying lbproxy by hand. README.md describes them.
package examples

import "embed"

// Manifests are the YAML files of this directory.
//
//go:embed *.yaml
var Manifests embed.FS
