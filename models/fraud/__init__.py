"""Click farms and fake orders, found without labels by what independent people would not do; pure, one event at a time.

habits     what one user's own events show
meetings   who meets whom at item after item
crowds     what an item's visitors do together
paths      sessions that somebody has lived through before
watch      all of them on one log
fusion     their terms as one score, by what a reference population shows
own_terms  the score of one user by its own terms, where no crowd is at hand
baselines  what the score is held against
"""
