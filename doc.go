// Package sandgate is the house. shared is what both sides of every boundary must agree on: words, contracts, wire.
// plugin is what an extension author imports. drivers turn a sandbox into something running. gateway decides what
// should happen, writes it down, and makes it happen. examples are extensions that a stranger can copy.
//
// Imports go down only; house_test.go has the rules.
package sandgate
