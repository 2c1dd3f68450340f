drivr "native" {}
