// Package drivertest judges drivers, and has one that can be told to fail.
//
// Lifecycle is the conformance suite of every driver, Workload that of drivers that run something. A driver passes
// them with one call each:
//
//	func TestConformance(t *testing.T) {
//		drivertest.Lifecycle(t, factory)
//		drivertest.Workload(t, factory)
//	}
//
// World is compute in memory, and Fake a driver over it. The world stays when a gateway dies: what a test calls a
// crash is that the handles are dropped and new ones are opened on the same world. A script tells the world what
// goes wrong with which call (Inject), holds calls open (Fault with HoldBefore or HoldAfter), and plays the part of
// the host and of other people (Exit, Lose, Vanish, SetReady, Plant). The world writes down in order what was called
// and what came of it (Log), and what a gateway did that it must never do (Violations).
//
// Nothing here starts a goroutine, and time comes from the clock that is given, so that all of it can be used within
// testing/synctest; a world then belongs to the bubble in which it was made.
package drivertest
